"""Files and where they live. Imports neither torch nor Ray."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lynx_parallel.errors import ClusterError

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def cache_root() -> Path:
    """The user's cache folder: ``$LYNX_CACHE``, else ``$XDG_CACHE_HOME/lynx-parallel``, else ``~/.cache/…``.

    It may not exist yet. An empty variable counts as unset, as the XDG specification asks; so does a
    relative ``$XDG_CACHE_HOME``.

    Raises:
        ClusterError: it would lie in the user's home folder, and there is none.
    """
    try:
        if own := os.environ.get("LYNX_CACHE"):
            return Path(own).expanduser().absolute()
        xdg = os.environ.get("XDG_CACHE_HOME", "")
        base = Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache"
    except RuntimeError:
        raise ClusterError(
            f"no home folder: HOME is not set, and user {os.getuid()} has no entry in the password database. Set "
            "LYNX_CACHE to a folder for the cache, or set HOME."
        ) from None
    return base / "lynx-parallel"


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Hex sha256 of a JSON value in canonical form (sorted keys, no spaces, shortest floats)."""
    return hashlib.sha256(_CANONICAL.encode(value).encode()).hexdigest()


def shown(path: Path) -> str:
    """A path for the user: relative to the working folder where it lies inside."""
    cwd = Path.cwd()
    return str(path.relative_to(cwd)) if path.is_relative_to(cwd) else str(path)


def part_path(path: Path, attempt: int = 1) -> Path:
    """Where an attempt writes a file before it is whole: the same folder, ``.<attempt>.part`` appended.

    A rank that was given up, but lives on where the driver cannot reach it, must not write where its successor does.
    """
    return path.with_name(f"{path.name}.{attempt}.part")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write; on leaving, it is flushed to disk and becomes ``path`` at once.

    On an exception the temporary is removed and ``path`` stays as it was.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        publish(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def machine_at_fault(error: Exception) -> bool:
    """Whether a file may be good though it could not be read: a failing disk or share, too many open files."""
    return any(os.strerror(number) in str(error) for number in (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE))


def disk_is_full(error: Exception) -> bool:
    """Whether a write failed for want of room, on the disk or in a quota; libraries keep only the system's words."""
    full = errno.ENOSPC, errno.EDQUOT
    return getattr(error, "errno", None) in full or any(os.strerror(number) in str(error) for number in full)


def publish(part: Path, path: Path) -> None:
    """Makes a finished temporary the file ``path``, surviving a power cut from here on."""
    _fsync(part)
    os.replace(part, path)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
