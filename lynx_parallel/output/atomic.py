"""Writes, publishes and moves files atomically. Imports neither torch nor Ray."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROBE_S = 600.0
"""Age in seconds from which a probe counts as left by a killed process."""


def part_path(path: Path, attempt: int = 1) -> Path:
    """Returns where an attempt writes a file before it is complete: beside it, with ``.<attempt>.part`` appended.

    A rank that was given up, but lives on where the driver cannot reach it, must not write where its successor does.
    """
    return path.with_name(f"{path.name}.{attempt}.part")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write; on leaving, it is flushed to disk and becomes ``path`` at once.

    On an exception the temporary is removed and ``path`` stays as it was. An OSError that names no file gets ``path``.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with naming(path):
            yield part
        publish(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def replace_at_once(path: Path, content: bytes) -> None:
    """Replaces a small file at once. It is not flushed to the disk: the next one follows in seconds.

    The temporary ends in ``.part``.

    Raises:
        OSError: it cannot be written, on a full disk for example. The old file stays.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with naming(path):
            part.write_bytes(content)
            os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds ``path`` to each OSError of the block that names no file, as those of ``write`` and ``fsync`` do."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def publish(part: Path, path: Path) -> None:
    """Makes a finished temporary the file ``path``, surviving a power cut from here on.

    Args:
        part: usually in the folder of ``path``; see ``move`` for one on another file system.

    Raises:
        OSError: always with the name of a file.
    """
    _fsync(part)
    move(part, path)
    _fsync_folder(path.parent)


def publish_folder(part: Path, path: Path) -> None:
    """Makes a finished temporary folder, on the same file system, the folder ``path``, which must not exist yet.

    It survives a power cut from here on, as by ``publish``.
    """
    for file in part.rglob("*"):
        if file.is_file():
            _fsync(file)
    os.rename(part, path)
    _fsync_folder(path.parent)


def move(source: Path, target: Path) -> None:
    """Moves a file, to another file system if necessary, and replaces ``target``. ``target``'s folder must exist.

    Between file systems, the file is copied to a temporary beside ``target``, which gets the name ``target`` once it
    is on the disk. The source is removed last. A crash at any moment leaves one whole file under one of the two names.
    """
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    else:
        return
    if source.is_symlink() or not source.is_file():
        shutil.move(source, target)  # a link or a folder where a file belongs: never one of ours
        return
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        shutil.copyfile(source, part)
        with suppress(OSError):  # a file system may refuse chmod
            shutil.copystat(source, part)
        _fsync(part)
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _fsync_folder(target.parent)
    source.unlink()
    _fsync_folder(source.parent)


def set_aside(path: Path, folder: Path) -> Path:
    """Moves a damaged file into a folder, under a name that is free there. Returns its new path."""
    folder.mkdir(parents=True, exist_ok=True)
    names = itertools.chain([path.name], (f"{path.name}.{number}" for number in itertools.count(2)))
    target = next(folder / name for name in names if not os.path.lexists(folder / name))
    move(path, target)
    return target


def try_publishing(folder: Path, content: bytes = b"probe") -> None:
    """Publishes a small file in a folder and deletes it: writes, flushes, renames, flushes the folder, reads, unlinks.

    A later run removes what a killed process leaves, see ``Output.sweep``.

    Raises:
        OSError: a step failed, or the file reads back other bytes; names the file.
    """
    path = folder / f"probe-{uuid.uuid4().hex}"
    try:
        with atomic_write(path) as part:
            part.write_bytes(content)
        with naming(path):
            if path.read_bytes() != content:
                raise OSError(errno.EIO, "reads back other bytes than were written", str(path))
    finally:
        path.unlink(missing_ok=True)


def left_probes(folder: Path) -> list[Path]:
    """Returns the probes that killed processes have left in a folder, see ``try_publishing`` and ``Output.probe``.

    Younger ones may be in use: a driver makes one before it takes the lock of its output folder.
    """
    found = []
    for path in folder.glob("probe-*"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > PROBE_S:
                found.append(path)
    return found


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


_NO_FOLDER_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
"""Error numbers of file systems that cannot flush a folder: CIFS, vboxsf, many FUSE file systems."""


def _fsync_folder(folder: Path) -> None:
    """Flushes a folder's entries, where its file system can."""
    try:
        _fsync(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FSYNC:
            raise
