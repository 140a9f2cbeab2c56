"""The folder of the subject cache: its files, their modes, and who uses which entry.

``<key>.safetensors`` is an entry. ``<key>.<16 digits>.json`` is a reference: one subject of one output folder uses the
entry. Imports neither torch nor Ray.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.cache_root import cache_root
from lynx_parallel.inputs.entries import ID, ID_ALLOWED
from lynx_parallel.output.atomic import publish
from lynx_parallel.output.modes import REFUSED, reason

MAX_REFERENCE_BYTES = 2**16
KEY = re.compile(r"[0-9a-f]{16,128}")
_NAME = re.compile(rf"({KEY.pattern})\.(safetensors|[0-9a-f]{{16}}\.json)(\.[^.]+\.part)?")


class Reference(NamedTuple):
    """One subject of one output folder uses an entry.

    Attributes:
        path: file of this reference.
        key: of the entry.
        output: absolute path of the output folder.
    """

    path: Path
    key: str
    subject: str
    output: Path


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class CacheFolder:
    """The cache's folder, which is closed to everyone but its owner.

    Attributes:
        root: 0700, its files 0600, whatever the umask. It is made by the first write.
        warn: takes a line for each problem that costs no more than a miss.
        open: whether the file system has no permissions, so that others may read the files.
    """

    def __init__(self, root: Path | None, warn: Callable[[str], None]):
        self.root = cache_root() / "subjects" if root is None else root
        self.warn = warn
        self.open = False

    def tighten(self) -> None:
        """Closes the folder to others.

        On a file system without permissions, the user's own folder is used with a warning.

        Raises:
            OSError: the folder is missing, or belongs to another user and cannot be closed.
        """
        status = self.root.stat()
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.root))
        if status.st_mode & 0o777 != 0o700 and not self.open:
            try:
                self.root.chmod(0o700)
            except OSError as error:
                if error.errno not in REFUSED or status.st_uid != os.geteuid():
                    raise
                self.open = True
                self.warn(
                    f"{self.root}: cannot be closed to others: {reason(error)}. Its file system decides who can read "
                    "the face data. Set LYNX_CACHE to a folder on another file system."
                )
                return
            for path, _, _ in self.files():
                with contextlib.suppress(FileNotFoundError):
                    if stat.S_ISREG(path.lstat().st_mode):
                        path.chmod(0o600)

    def write(self, path: Path, data: bytes) -> None:
        descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=self.root)
        part = Path(name)
        try:
            with open(descriptor, "wb") as file:
                if not self.open:
                    os.fchmod(descriptor, 0o600)
                file.write(data)
            publish(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def files(self) -> list[tuple[Path, str, str]]:
        """Returns (path, key, kind) of each file of the cache; kind is ``entry``, ``reference`` or ``part``."""
        found = []
        for name in os.listdir(self.root):
            if match := _NAME.fullmatch(name):
                kind = "part" if match[3] else "entry" if match[2] == "safetensors" else "reference"
                found.append((self.root / name, match[1], kind))
        return found

    def references(self, *, removing: bool = False) -> Iterator[Reference]:
        """Yields each reference that can be read. With ``removing``, the others are removed."""
        for path, key, kind in self.files():
            if kind != "reference":
                continue
            try:
                record = json.loads(read_file(path, MAX_REFERENCE_BYTES))
                subject, output = str(record["subject"]), Path(record["output"])
                if not ID.fullmatch(subject) or not output.is_absolute():
                    raise ValueError("not a reference")
                yield Reference(path, key, subject, output)
            except FileNotFoundError:
                pass
            except (ValueError, KeyError, TypeError, RecursionError):
                if removing:
                    self.warn(f"{path}: damaged; removed")
                    path.unlink(missing_ok=True)


def read_file(path: Path, limit: int) -> bytes:
    """Returns the content of a plain file.

    Raises:
        ValueError: not a plain file, or larger than ``limit`` bytes.
    """
    status = path.lstat()  # before opening it: a pipe would block
    if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
        raise ValueError("not a plain file, or too large")
    return path.read_bytes()


def remove(path: Path) -> None:
    """Removes a folder or file. Of a link, it removes the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def check_ids(subjects: Iterable[str]) -> None:
    """Raises InputErrors if one of these is no subject id."""
    if wrong := [subject for subject in subjects if not ID.fullmatch(subject)]:
        raise InputErrors(f"{subject!r}: {ID_ALLOWED}" for subject in wrong)
