"""A stand-in for ``sys.executable`` whose processes are forks of a process that has imported the rank's code.

A child of a command then has nothing to import before it begins. It dies with the process that stands in for it, and
gets the signals of that process.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing as mp
import os
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.command_server import PYTHON
from tests.helpers.processes import server_context

CLIENT = """\
import json, os, signal, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: connection.sendall(bytes([number])))
request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(connection, [len(request).to_bytes(4, "big")], [0, 1, 2])
connection.sendall(request)
code = connection.recv(1)
os._exit(code[0] if code else 1)
"""


@cache
def python() -> str:
    """Returns the path of the stand-in. It takes ``-m MODULE``, perhaps after other options, and arguments."""
    folder = Path(tempfile.mkdtemp(prefix="lynx-", dir="/tmp"))  # short, for the limit on socket paths
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = str(folder / "socket")
    (folder / "client.py").write_text(CLIENT.format(address=address))
    command = folder / "python"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{folder}/client.py" "$@"\n')
    command.chmod(0o755)
    listening = server_context().Event()
    server_context().Process(target=_serve, args=(address, listening, os.getpid()), daemon=True).start()
    assert listening.wait(120)
    return str(command)


@contextlib.contextmanager
def fast_children() -> Iterator[None]:
    """Within the block, children of this process and of light commands are started by the stand-in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PYTHON, python())
        patch.setattr(sys, "executable", python())
        yield


def _serve(address: str, listening: mp.synchronize.Event, user: int) -> None:
    """Serves until the process that uses the stand-in has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the processes of connections
    mp.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # its forks may start processes
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    listener.settimeout(1.0)
    listening.set()
    while Path(f"/proc/{user}").exists():
        with contextlib.suppress(TimeoutError):
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _run(connection)
            connection.close()


def _run(connection: socket.socket) -> None:
    """Forks a process for a request. Sends it signals, and sends back its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection.settimeout(None)
    size, streams, _, _ = socket.recv_fds(connection, 4, 3)
    request = b""
    while len(request) < int.from_bytes(size, "big"):
        request += connection.recv(2**20)
    child = os.fork()
    if child == 0:
        connection.close()
        arguments, folder, environment = json.loads(request)
        _execute(arguments, folder, environment, streams)
    for stream in streams:
        os.close(stream)
    threading.Thread(target=_forward, args=(connection, child), daemon=True).start()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        connection.sendall(bytes([code if code >= 0 else 128 - code]))
    os._exit(0)


def _forward(connection: socket.socket, child: int) -> None:
    with contextlib.suppress(ConnectionResetError):
        while number := connection.recv(1):
            os.kill(child, number[0])
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)  # the process that it stands in for has ended


def _execute(arguments: list[str], folder: str, environment: dict[str, str], streams: list[int]) -> None:
    """The child's process."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode, closefd=False) for number, mode in enumerate("rww"))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module = arguments[arguments.index("-m") + 1]
    sys.argv = [module, *arguments[arguments.index("-m") + 2 :]]
    code: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    for printed in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):  # the module has closed it
            printed.flush()
    os._exit(code or 0)
