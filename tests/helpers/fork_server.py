"""Servers whose processes are forks of a process that has imported what they need. All test workers share them.

A fork has nothing to import before it begins. There are two servers: ``light`` has imported the command line and
neither torch nor Ray, ``heavy`` what a driver and its ranks import.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import importlib
import os
import pickle
import runpy
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from tests.helpers.repository import REPOSITORY

MODULES = {"light": "tests.helpers.preloaded_light", "heavy": "tests.helpers.preloaded"}
INTERPRETER = sys.executable
PYTHON = "LYNX_TEST_PYTHON"
"""Variable that replaces ``sys.executable`` in a fork, see ``python``."""
MAY_DIFFER = (
    "COMP_", "HF_", "HOME", "HTTP_PROXY", "http_proxy", "LYNX_", "_LYNX_", "OLDPWD", "PATH", "PWD", "PYTEST_", "TMPDIR",
    "_TYPER_",
)  # fmt: skip
"""Variables that no module of the light server reads when it is imported."""
SET_HERE = (
    "GLOO_", "GRPC_VERBOSITY", "LD_LIBRARY_PATH", "NO_ALBUMENTATIONS_UPDATE", "ORT_DISABLE_TELEMETRY", "QT_",
    "RAY_AUTH_TOKEN_PATH", "TORCHINDUCTOR_CACHE_DIR",
)  # fmt: skip
"""Variables that the engine and libraries set in the process of the tests. A command sets its own."""
HEAVY = ("torch", "ray", "diffusers", "transformers", "numpy")
"""Packages that the light server has not imported."""

CLIENT = """\
import os, pickle, signal, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: connection.sendall(bytes([number])))
request = pickle.dumps((sys.argv[1:], os.getcwd(), dict(os.environ)))
socket.send_fds(connection, [len(request).to_bytes(4, "big")], [0, 1, 2])
connection.sendall(request)
if connection.recv(4) == bytes(4):  # NoFork
    os.execv({interpreter!r}, [{interpreter!r}, *sys.argv[1:]])
code = int.from_bytes(connection.recv(4), "big", signed=True)
os._exit(code if code >= 0 else 128 - code)
"""


class NoFork(Exception):
    """A variable differs that a module may have read when the light server imported it."""


class Fork:
    """A process of a server. It dies with the process that has started it.

    Args:
        server: ``light`` or ``heavy``.
        what: arguments for Python, ``-m MODULE ...``, ``-c CODE ...`` or ``FILE ...``, or a function of a module's top
            level and its arguments.
        streams: descriptors for stdin, stdout and stderr.

    Raises:
        NoFork: it must be a process of its own.
    """

    def __init__(
        self,
        server: str,
        what: Sequence[str] | tuple[Callable[..., Any], tuple[Any, ...]],
        cwd: Path | str,
        environment: Mapping[str, str],
        streams: Sequence[int],
    ):
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(_address(server)))
        request = pickle.dumps((what, str(cwd), dict(environment)))
        socket.send_fds(self._connection, [struct.pack(">I", len(request))], streams)
        self._connection.sendall(request)
        (self.pid,) = struct.unpack(">i", self._read())
        if not self.pid:
            self._connection.close()
            raise NoFork
        self.exitcode: int | None = None
        """None while it runs, negative if a signal ended it."""

    def _read(self) -> bytes:
        received = self._connection.recv(4, socket.MSG_WAITALL)
        assert len(received) == 4, "the server of forks has ended"
        return received

    def is_alive(self) -> bool:
        return self.wait(0) is None

    def wait(self, within: float | None) -> int | None:
        """Waits so many seconds for its end. Returns its exit code, or None if it still runs."""
        if self.exitcode is None:
            self._connection.settimeout(within)
            with contextlib.suppress(TimeoutError, BlockingIOError):
                (self.exitcode,) = struct.unpack(">i", self._read())
                self._connection.close()
        return self.exitcode

    def kill(self) -> None:
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.wait(None)


@cache
def python(server: str = "heavy") -> str:
    """Returns the path of a stand-in for ``sys.executable``. Its processes are forks of the server.

    The process dies with the one that stands in for it, and gets its SIGTERM and SIGINT.
    """
    address = _address(server)
    command, client = (address.with_name(f"{server}-{name}") for name in ("python", "client.py"))
    with _locked(address.parent):
        if not command.exists():
            client.write_text(CLIENT.format(address=str(address), interpreter=INTERPRETER))
            command.write_text(f'#!/bin/sh\nexec "{INTERPRETER}" -IS "{client}" "$@"\n')
            command.chmod(0o755)
    return str(command)


@contextlib.contextmanager
def fast_children() -> Iterator[None]:
    """Within the block, children of this process and of light commands are forks of the heavy server."""
    with mock.patch.dict(os.environ, {PYTHON: python()}), mock.patch.object(sys, "executable", python()):
        yield


@cache
def _address(server: str) -> Path:
    """Returns the socket of a server that runs. The first test worker that needs it starts it."""
    session = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    folder = Path(f"/tmp/lynx-forks-{os.getuid()}-{session}")  # short, for the limit on socket paths
    folder.mkdir(mode=0o700, exist_ok=True)
    address = folder / server
    with _locked(folder):
        if not address.exists():
            process = subprocess.Popen(
                [INTERPRETER, "-m", "tests.helpers.fork_server", server, str(address), str(session)],
                cwd=REPOSITORY, env=dict(os.environ), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                start_new_session=True,
            )  # fmt: skip
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
    return address


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Server:
    """Forks a process for each connection.

    It sends the process's number and later its exit code. It gets signals for the process, and kills it when the
    connection ends.
    """

    def __init__(self, name: str, address: str):
        importlib.import_module(MODULES[name])
        assert name == "heavy" or not [package for package in HEAVY if package in sys.modules]
        self._environment = dict(os.environ) if name == "light" else None
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen(64)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def serve(self, session: int) -> None:
        """Serves until the process ``session`` has ended. Then it kills the processes that are left."""
        while Path(f"/proc/{session}").exists():
            for key, _ in self._selector.select(1.0):
                key.data()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, _Signals):
                key.data.kill()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        header, streams, _, _ = socket.recv_fds(connection, 4, 3)
        size = int.from_bytes(header, "big")
        request = connection.recv(size, socket.MSG_WAITALL)
        if request and len(request) == size:  # its client lives
            self._answer(connection, request, streams)
        else:
            connection.close()
        for stream in streams:
            os.close(stream)

    def _answer(self, connection: socket.socket, request: bytes, streams: list[int]) -> None:
        what, cwd, environment = pickle.loads(request)
        if self._environment is not None and not _same(self._environment, environment):
            _send(connection, 0)
            connection.close()
        elif pid := os.fork():
            _send(connection, pid)
            ended = os.pidfd_open(pid)
            self._selector.register(ended, selectors.EVENT_READ, partial(self._end, pid, ended, connection))
            self._selector.register(connection, selectors.EVENT_READ, _Signals(pid, connection, self._selector))
        else:
            connection.close()
            for key in self._selector.get_map().values():
                os.close(key.fd)
            _run(what, cwd, environment, streams)

    def _end(self, pid: int, ended: int, connection: socket.socket) -> None:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self._selector.unregister(ended)
        os.close(ended)
        if connection in self._selector.get_map():
            self._selector.unregister(connection)
        _send(connection, code)
        connection.close()


@dataclass
class _Signals:
    """Passes signals to a process."""

    pid: int
    connection: socket.socket
    selector: selectors.BaseSelector

    def __call__(self) -> None:
        if self.connection.fileno() < 0:
            return  # the process's end, which came at the same time, has closed it
        numbers = b""
        with contextlib.suppress(ConnectionResetError):
            numbers = self.connection.recv(16)
        for number in numbers:
            os.kill(self.pid, number)
        if not numbers:
            self.selector.unregister(self.connection)
            self.kill()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def _send(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # its client has ended
        connection.sendall(struct.pack(">i", number))


def _same(environment: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether no variable differs that a module of the light server reads when it is imported."""
    differ = {name for name, _ in {*environment.items()} ^ {*other.items()}}
    return all(name.startswith((*MAY_DIFFER, *SET_HERE)) for name in differ)


def _run(what: Any, cwd: str, environment: dict[str, str], streams: list[int]) -> NoReturn:
    """Runs the fork's program or function to its end, as Python does."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.executable = environment.get(PYTHON, sys.executable)
    code: object = 0
    interrupted = False
    try:
        if callable(what[0]):
            what[0](*what[1])
        else:
            _run_program(list(what))
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        sys.excepthook(*sys.exc_info())
        code, interrupted = 1, isinstance(error, KeyboardInterrupt)
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter's end does
    atexit._run_exitfuncs()
    for printed in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):  # the program has closed it
            printed.flush()
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code or 0)


def _run_program(arguments: list[str]) -> None:
    """Runs ``-m MODULE``, ``-c CODE`` or a file, perhaps after other options of Python, as ``__main__``."""
    while arguments[0].startswith("-") and arguments[0] not in ("-m", "-c"):
        del arguments[: 2 if arguments[0] in ("-X", "-W") else 1]
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    server = _Server(sys.argv[1], sys.argv[2])
    print("ready", flush=True)
    try:
        server.serve(int(sys.argv[3]))
    finally:
        shutil.rmtree(Path(sys.argv[2]).parent, ignore_errors=True)
