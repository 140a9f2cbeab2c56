"""The folder of a Ray that is started for one run. Imports neither torch nor Ray."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lynx_parallel.engine.reaper import reaped
from lynx_parallel.errors import ClusterError

PREFIX = "lynx-ray-"
MAX_SOCKET_BYTES = 107
"""Bytes of a Unix socket's path on Linux, without the final zero."""
_SOCKET = f"/{PREFIX}12345678/session_2026-01-31_12-00-00_123456_1234567/sockets/plasma_store"
MAX_PARENT_BYTES = MAX_SOCKET_BYTES - len(_SOCKET)
SHARED_MEMORY = Path("/dev/shm")
KEPT_LOGS = ("gcs_server.err", "gcs_server.out", "raylet.err", "raylet.out")
KEPT_BYTES = 64 * 2**10


@contextlib.contextmanager
def ray_folder(private: Path) -> Iterator[Path]:
    """Yields a new folder, readable by this user alone. After the block, it is gone and all its processes with it.

    The folder lies where temporary files belong (``TMPDIR``), or where the path is short enough for Ray's sockets.

    Args:
        private: a folder that can be written, in case no usual one can.

    Raises:
        ClusterError: no folder can be written, or all paths are too long.
    """
    folder = _make(_parents(private))
    with _temporary_files_in(folder), reaped(folder):
        yield folder


def _parents(private: Path) -> list[str]:
    named = [os.environ[name] for name in ("TMPDIR", "TEMP", "TMP") if os.environ.get(name)]
    return [*map(os.path.abspath, named), "/tmp", "/var/tmp", str(SHARED_MEMORY), str(private.absolute())]


def _make(parents: list[str]) -> Path:
    for parent in parents:
        if len(os.fsencode(parent)) <= MAX_PARENT_BYTES:
            with contextlib.suppress(OSError):
                return Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    raise ClusterError(
        f"Ray needs a folder for its sockets: none of {', '.join(dict.fromkeys(parents))} can be written and has a "
        f"path of at most {MAX_PARENT_BYTES} bytes. Set TMPDIR to such a folder."
    )


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Gives temporary files of this process and the ranks a place, if the system has none but the working folder."""
    try:
        nowhere = tempfile.gettempdir() == os.getcwd() != os.environ.get("TMPDIR")
    except FileNotFoundError:
        nowhere = True
    if not nowhere:
        yield
        return
    before = tempfile.tempdir, os.environ.get("TMPDIR")
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before[0]
        os.environ.pop("TMPDIR")
        os.environ |= {} if before[1] is None else {"TMPDIR": before[1]}


def make_token(folder: Path) -> None:
    """Gives this Ray a token of its own, unless the user has set one. Otherwise Ray would write one to ``HOME``."""
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        path = folder / "auth_token"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


def object_store_folder(folder: Path, private: Path, size: int) -> Path:
    """Returns where the object store's file goes: shared memory if it is large enough, else a disk."""
    for place in (SHARED_MEMORY, folder, private):
        with contextlib.suppress(OSError):
            if os.access(place, os.W_OK) and shutil.disk_usage(place).free >= size:
                return place
    return folder


def keep_logs(folder: Path, log: Path) -> None:
    """Appends the end of what Ray's own processes wrote to a log, since their folder is removed."""
    with contextlib.suppress(OSError), log.open("ab") as kept:
        for name in KEPT_LOGS:
            for path in folder.glob(f"session_2*/logs/{name}"):
                text = path.read_bytes()[-KEPT_BYTES:]
                if text.strip():
                    kept.write(f"\n=== {name} ===\n".encode() + text)
