"""A program ``lynx-render`` for shell scripts, whose runs are those of ``forked_command``."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.helpers import forked_command

CLIENT = """\
import json, os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
connection.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
connection.shutdown(socket.SHUT_WR)
code, printed, errors = json.load(connection.makefile())
sys.stdout.write(printed)
sys.stderr.write(errors)
sys.exit(code)
"""


@contextlib.contextmanager
def program() -> Iterator[Path]:
    """Yields the folder of the program, for ``PATH``."""
    with tempfile.TemporaryDirectory(prefix="lynx-", dir="/tmp") as name:  # short, for the limit on socket paths
        folder = Path(name)
        address = str(folder / "socket")
        (folder / "client.py").write_text(CLIENT.format(address=address))
        command = folder / "lynx-render"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{folder}/client.py" "$@"\n')
        command.chmod(0o755)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()
            threading.Thread(target=_serve, args=(listener,), daemon=True).start()
            yield folder


def _serve(listener: socket.socket) -> None:
    """Runs one command after another, until the listener is closed."""
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("r") as asked:
                arguments, folder, environment = json.load(asked)
                run = forked_command.render(*arguments, cwd=Path(folder), **environment)
                connection.sendall(json.dumps([run.returncode, run.stdout, run.stderr]).encode())
