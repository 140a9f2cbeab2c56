"""What is computed once per subject picture, kept for the next run.

Face data is biometric: it lies in one folder that is its owner's alone, every entry is tied to the subjects
and output folders it served, and ``SubjectCache.forget`` removes it; see ``forget`` for the rest of a subject.
Imports neither torch nor Ray, and numpy only on use.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.cache_root import cache_root
from lynx_parallel.inputs.entries import ID, ID_ALLOWED
from lynx_parallel.output.atomic import publish
from lynx_parallel.output.checksums import pack, unpack
from lynx_parallel.output.crops import faces_folder
from lynx_parallel.output.modes import REFUSED, reason

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_BYTES = 2**30
MAX_REFERENCE_BYTES = 2**16
STALE_PART_S = 3600.0
_KEY = re.compile(r"[0-9a-f]{16,128}")
_NAME = re.compile(rf"({_KEY.pattern})\.(safetensors|[0-9a-f]{{16}}\.json)(\.[^.]+\.part)?")

Wanted = Mapping[str, Collection[Path] | None]
"""Output folders in which subjects are looked for, by subject; None for all."""


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class SubjectCache:
    """Small arrays by key, on disk, for any number of processes at once.

    ``<key>.safetensors`` holds the arrays under a checksum; ``<key>.<16 digits>.json`` says that one subject
    of one output folder uses them. A reference is a file of its own since two processes then never have to
    merge; it is written before the entry and outlives its eviction, so that ``forget`` misses nothing.
    Entries are replaced atomically; trouble of any kind is a line to ``warn`` and a miss, never an error.

    Attributes:
        root: the folder, made on the first ``put``; 0700, its files 0600, whatever the umask.
        max_bytes: bound on the entries together; the least recently used go first.
        hits, misses: how ``get`` ended, so far.
    """

    def __init__(
        self, root: Path | None = None, *, max_bytes: int = MAX_BYTES, warn: Callable[[str], None] = _to_stderr
    ):
        self.root = cache_root() / "subjects" if root is None else root
        self.max_bytes = max_bytes
        self.warn = warn
        self.hits = 0
        self.misses = 0
        self._open = False  # on a file system without permissions

    def get(self, key: str) -> dict[str, NDArray[Any]] | None:
        """The arrays put under ``key``, exactly, or None.

        Args:
            key: lower-case hex digest of all that the arrays depend on.
        """
        arrays = self._load(self._entry(key), key)
        self.hits += arrays is not None
        self.misses += arrays is None
        return arrays

    def put(self, key: str, arrays: Mapping[str, NDArray[Any]], *, subject: str, output: Path) -> None:
        """Keeps arrays under ``key``, and that this subject of this output folder uses them."""
        path, data = self._entry(key), pack(key, arrays)
        if len(data) > self.max_bytes:
            self.warn(f"{path}: not cached: {len(data)} bytes are more than the cache holds, {self.max_bytes}")
        elif self._refer(key, subject, output):
            try:
                self._make_room(len(data), path)
                self._write(path, data)
            except OSError as error:
                self.warn(f"{path}: not cached: {error.strerror or error}")

    def refer(self, key: str, *, subject: str, output: Path) -> None:
        """Notes that this subject of this output folder uses the entry too."""
        self._entry(key)
        self._refer(key, subject, output)

    def uses(self, subjects: Collection[str]) -> dict[str, set[Path]]:
        """Returns the output folders that used each of these subjects; removes nothing.

        Raises:
            OSError: the cache cannot be read.
        """
        found: dict[str, set[Path]] = {}
        for reference in self._kept(dict.fromkeys(subjects))[1]:
            found.setdefault(reference.subject, set()).add(reference.output)
        return found

    def kept(self, subjects: Collection[str] | Wanted) -> list[Path]:
        """Returns the files of these subjects that ``forget`` would remove from the cache.

        Raises:
            OSError: the cache cannot be read.
        """
        entries, mine, _ = self._kept(_wanted(subjects))
        keys = {reference.key for reference in mine}
        theirs = (path for path in entries if path.name.partition(".")[0] in keys)
        return sorted({*theirs, *(reference.path for reference in mine)})

    def forget(self, subjects: Collection[str] | Wanted) -> dict[str, list[Path]]:
        """Removes what is kept of these subjects: entries, and the crops in every output that used them.

        An entry that another subject or another output folder shares goes as well: it is the same picture. So does an
        entry without a readable reference: it could be anybody's. A run that is rendering the subject meanwhile may
        keep it anew.

        Args:
            subjects: ids, or ids with the output folders in which the subject is to be forgotten.

        Returns:
            The existing output folders of each subject of whom anything was known. Where a crop could not be
            removed, ``warn`` was told, and forgetting again tries again.

        Raises:
            InputErrors: no subject id.
            OSError: the cache cannot be read or changed.
        """
        check_ids(subjects)
        entries, mine, others = self._kept(_wanted(subjects), removing=True)
        for path in entries:
            path.unlink(missing_ok=True)
        for name in sorted({reference.subject for reference in others} - {*subjects}):
            self.warn(f"{name}: has the same picture as a subject forgotten here, and is not forgotten itself")
        for folder in sorted({reference.output for reference in others if reference.subject in subjects}):
            self.warn(f"{folder}: uses the same picture: its crops and videos stay, and its next run caches it again")
        return self._forget_crops(mine)

    def _kept(self, wanted: Wanted, *, removing: bool = False) -> tuple[list[Path], list[_Reference], list[_Reference]]:
        """Returns entries of subjects, the references to them, and the references of others to the same entries."""
        try:
            self._tighten()
        except FileNotFoundError:
            return [], [], []
        files = self._files()  # before the references: an entry seen here has its reference by then
        references = list(self._references(removing=removing))
        mine = [one for one in references if one.subject in wanted and _is_in(one.output, wanted[one.subject])]
        doomed, known = {reference.key for reference in mine}, {reference.key for reference in references}
        entries = [
            path
            for path, key, kind in files
            if (key in doomed if kind == "part" else kind == "entry" and (key in doomed or key not in known))
        ]
        return entries, mine, [one for one in references if one.key in doomed and one not in mine]

    def _forget_crops(self, references: Iterable[_Reference]) -> dict[str, list[Path]]:
        outputs: dict[str, set[Path]] = {}
        for path, _, subject, output in references:
            there = outputs.setdefault(subject, set())
            crops = faces(output, subject)
            try:
                if output.is_dir():
                    there.add(output)
                    remove(crops)
                else:
                    self.warn(f"{output}: not there; if it lies on a disk that is away, remove {crops} by hand")
            except OSError as error:
                self.warn(f"{crops}: cannot be removed: {error.strerror or error}")
            else:
                path.unlink(missing_ok=True)
        return {subject: sorted(there) for subject, there in outputs.items()}

    def _entry(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r}: a key is a lower-case hex digest, 16 to 128 digits")
        return self.root / f"{key}.safetensors"

    def _load(self, path: Path, key: str) -> dict[str, NDArray[Any]] | None:
        try:
            self._tighten()
            arrays = unpack(key, _read(path, self.max_bytes))
            with contextlib.suppress(OSError):  # a cache that can only be read is of use, too
                if not self._open:
                    path.chmod(0o600)
                os.utime(path)
            return arrays
        except FileNotFoundError:
            return None
        except OSError as error:
            self.warn(f"{path}: not used: {error.strerror or error}")
        except ValueError as error:
            self.warn(f"{path}: {error}; removed, to be computed anew")
            with contextlib.suppress(OSError):
                path.unlink()
        return None

    def _refer(self, key: str, subject: str, output: Path) -> bool:
        """Whether the reference is there now; without it, no entry may be: nobody could find it again."""
        if not ID.fullmatch(subject):
            raise ValueError(f"{subject!r}: {ID_ALLOWED}")
        record = {"version": 1, "subject": subject, "output": os.path.abspath(output)}
        text = (json.dumps(record) + "\n").encode()  # ASCII: a path of any bytes survives
        path = self.root / f"{key}.{hashlib.sha256(text).hexdigest()[:16]}.json"
        try:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            self.root.mkdir(mode=0o700, exist_ok=True)
            self._tighten()
            with contextlib.suppress(FileNotFoundError, ValueError):
                if _read(path, MAX_REFERENCE_BYTES) == text:
                    return True
            self._write(path, text)
        except OSError as error:
            self.warn(f"{path}: not cached: {error.strerror or error}")
            return False
        return True

    def _tighten(self) -> None:
        """Closes the folder to others.

        A file system without permissions, where the folder is our own, costs one warning.

        Raises:
            OSError: the folder is somebody else's and cannot be closed, so it must not be used; or it is missing.
        """
        status = self.root.stat()
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.root))
        if status.st_mode & 0o777 != 0o700 and not self._open:
            try:
                self.root.chmod(0o700)
            except OSError as error:
                if error.errno not in REFUSED or status.st_uid != os.geteuid():
                    raise
                self._open = True
                self.warn(
                    f"{self.root}: cannot be closed to others: {reason(error)}. Its file system decides who can read "
                    "the face data. Set LYNX_CACHE to a folder on another file system."
                )
                return
            for path, _, _ in self._files():
                with contextlib.suppress(FileNotFoundError):
                    if stat.S_ISREG(path.lstat().st_mode):
                        path.chmod(0o600)

    def _write(self, path: Path, data: bytes) -> None:
        descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=self.root)
        part = Path(name)
        try:
            with open(descriptor, "wb") as file:
                if not self._open:
                    os.fchmod(descriptor, 0o600)
                file.write(data)
            publish(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _make_room(self, size: int, path: Path) -> None:
        """Removes entries, the least recently used first, until ``size`` bytes at ``path`` keep the bound."""
        used = []
        for file, _, kind in self._files():
            with contextlib.suppress(FileNotFoundError):
                status = file.lstat()
                if kind == "part" and time.time() - status.st_mtime > STALE_PART_S:  # of a killed process
                    file.unlink()
                elif kind != "reference" and file != path and stat.S_ISREG(status.st_mode):
                    used.append((status.st_mtime_ns, file, status.st_size))
        total = size + sum(bytes_ for _, _, bytes_ in used)
        for _, file, bytes_ in sorted(used):
            if total <= self.max_bytes:
                break
            if not file.name.endswith(".part"):  # another process is writing that one
                file.unlink(missing_ok=True)
                total -= bytes_

    def _files(self) -> list[tuple[Path, str, str]]:
        """(path, key, kind) of each file of ours; kind is ``entry``, ``reference`` or ``part``."""
        found = []
        for name in os.listdir(self.root):
            if match := _NAME.fullmatch(name):
                kind = "part" if match[3] else "entry" if match[2] == "safetensors" else "reference"
                found.append((self.root / name, match[1], kind))
        return found

    def _references(self, *, removing: bool = False) -> Iterator[_Reference]:
        """Yields all that can be read; the others are removed, if asked for."""
        for path, key, kind in self._files():
            if kind != "reference":
                continue
            try:
                record = json.loads(_read(path, MAX_REFERENCE_BYTES))
                subject, output = str(record["subject"]), Path(record["output"])
                if not ID.fullmatch(subject) or not output.is_absolute():
                    raise ValueError("no reference of ours")
                yield _Reference(path, key, subject, output)
            except FileNotFoundError:
                pass
            except (ValueError, KeyError, TypeError, RecursionError):
                if removing:
                    self.warn(f"{path}: damaged; removed")
                    path.unlink(missing_ok=True)


def _wanted(subjects: Collection[str] | Wanted) -> Wanted:
    return subjects if isinstance(subjects, Mapping) else dict.fromkeys(subjects)


def _is_in(output: Path, outputs: Collection[Path] | None) -> bool:
    return outputs is None or output in outputs


class _Reference(NamedTuple):
    path: Path
    key: str
    subject: str
    output: Path


def faces(output: Path, subject: str) -> Path:
    """Folder of a subject's crops in an output, see ``crops.Crops``."""
    return faces_folder(output) / subject


def check_ids(subjects: Iterable[str]) -> None:
    """
    Raises:
        InputErrors: one of these is no subject id.
    """
    if wrong := [subject for subject in subjects if not ID.fullmatch(subject)]:
        raise InputErrors(f"{subject!r}: {ID_ALLOWED}" for subject in wrong)


def _read(path: Path, limit: int) -> bytes:
    """
    Raises:
        ValueError: no plain file, or one of more than ``limit`` bytes.
    """
    status = path.lstat()  # before it is opened: a pipe would wait
    if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
        raise ValueError("no plain file, or too large")
    return path.read_bytes()


def remove(path: Path) -> None:
    """Removes a folder, or whatever lies in its place; a link, never what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
