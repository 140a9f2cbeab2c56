"""Runs lynx-render in forks of a process that has imported the command line and neither torch nor Ray.

A command then has nothing to import before it begins. ``light_command`` uses it.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import pkgutil
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import lynx_parallel.cli
from tests.helpers.repository import REPOSITORY

HEAVY = ("torch", "ray", "diffusers", "transformers", "numpy")
ALSO = ("lynx_parallel.engine.campaign_run", "lynx_parallel.engine.driver", "lynx_parallel.view.report")
"""Modules that commands import when they need them."""
INTERPRETER = sys.executable
PYTHON = "LYNX_TEST_PYTHON"
"""Variable that names the interpreter of a command's children, see ``stand_in_python``."""
MAY_DIFFER = ("COMP_", "LYNX_", "_LYNX_", "_TYPER_", "PYTEST_", "HF_", "HOME", "PATH", "TMPDIR")
"""Variables that no module reads when it is imported."""
SET_HERE = ("GLOO_", "LD_LIBRARY_PATH", "NO_ALBUMENTATIONS_UPDATE", "ORT_DISABLE_TELEMETRY", "QT_")
"""Variables that cv2, insightface and ranks set in the process of the tests. A command sets its own."""


def run(
    arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], within: float
) -> subprocess.CompletedProcess[str] | None:
    """Runs a command to its end. Its process writes the names in ``HEAVY`` that it has imported to ``cwd/imported``.

    Returns None if a variable differs that modules may have read when they were imported.

    Args:
        within: seconds.
    """
    server = _server()
    differ = {name for name, value in {*environment.items()} ^ {*server.environment.items()}}
    if any(not name.startswith((*MAY_DIFFER, *SET_HERE)) for name in differ):
        return None
    with tempfile.TemporaryDirectory() as folder, Client(server.address) as connection:
        streams = [f"{folder}/stdout", f"{folder}/stderr"]
        connection.send((list(arguments), str(cwd), dict(environment), streams))
        if not connection.poll(within):
            raise subprocess.TimeoutExpired(list(arguments), within)
        code = connection.recv()
        return subprocess.CompletedProcess(list(arguments), code, *(Path(path).read_text() for path in streams))


class _Server:
    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="lynx-", dir="/tmp")  # short, for the limit on socket paths
        self.address = f"{self._folder.name}/commands"
        self.environment = dict(os.environ)
        self._process = subprocess.Popen(
            [INTERPRETER, "-m", "tests.helpers.command_server", self.address],
            cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        atexit.register(self._process.kill)


@cache
def _server() -> _Server:
    return _Server()


def serve(address: str) -> None:
    """Serves until the process that started it has ended."""
    for module in pkgutil.iter_modules(lynx_parallel.cli.__path__, "lynx_parallel.cli."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ALSO:
        importlib.import_module(name)
    assert not [name for name in HEAVY if name in sys.modules]
    gc.freeze()  # a collection in a fork would otherwise copy every page of these modules
    parent = os.getppid()
    listener = Listener(address)
    listener._listener._socket.settimeout(1.0)  # type: ignore[attr-defined]
    print("ready", flush=True)
    while os.getppid() == parent:
        try:
            connection = listener.accept()
        except TimeoutError:
            _reap()
            continue
        if os.fork() == 0:
            _handle(connection)
            os._exit(0)
        connection.close()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _handle(connection: Connection) -> None:
    """Runs one command in a fork. Answers with its exit code, which is negative if a signal ended it."""
    request = connection.recv()
    command = os.fork()
    if command == 0:
        connection.close()
        _execute(*request)
    connection.send(os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]))


def _execute(arguments: list[str], cwd: str, environment: dict[str, str], streams: list[str]) -> None:
    """The command's process."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for descriptor, path in enumerate(streams, 1):
        with open(path, "wb") as file:
            os.dup2(file.fileno(), descriptor)
    os.setsid()
    sys.argv = [f"{lynx_parallel.cli.__path__[0]}/__main__.py", *arguments]
    sys.executable = environment.get(PYTHON, sys.executable)
    code: Any = 0
    try:
        lynx_parallel.cli.main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter's end does
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    Path(cwd, "imported").write_text(" ".join(name for name in HEAVY if name in sys.modules))
    os._exit(int(code or 0))


if __name__ == "__main__":
    serve(sys.argv[1])
