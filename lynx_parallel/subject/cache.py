"""Keeps what is computed once per subject picture: crops, landmarks, embedding, reference latents.

Face data is biometric. It lies in one folder that only its owner can read. Every entry names the subjects and output
folders that use it, so that ``SubjectCache.forget`` can remove it. Module ``forget`` removes everything else of a
subject. Imports neither torch nor Ray, and numpy only on use.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_parallel.inputs.entries import ID, ID_ALLOWED
from lynx_parallel.output.checksums import pack, unpack
from lynx_parallel.output.crops import faces_folder
from lynx_parallel.subject.cache_folder import (
    KEY,
    MAX_REFERENCE_BYTES,
    CacheFolder,
    Reference,
    _to_stderr,
    check_ids,
    read_file,
    remove,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_BYTES = 2**30
STALE_PART_S = 3600.0

Wanted = Mapping[str, Collection[Path] | None]
"""Output folders of each subject that a search includes; None for all of them."""


class SubjectCache:
    """Stores small arrays by key on disk, for any number of processes at once.

    An entry holds the arrays and a checksum. Each reference is a file of its own, so that two processes never have to
    merge references. A reference is written before its entry and stays when the entry is evicted, so that ``forget``
    finds every subject. Entries are replaced atomically. A problem costs a warning and a miss, never an error.

    Attributes:
        root: folder of the cache, made by the first ``put``.
        max_bytes: bound on all entries together. The least recently used entries are evicted first.
        hits, misses: results of ``get`` so far.

    Args:
        warn: takes each warning.
    """

    def __init__(
        self, root: Path | None = None, *, max_bytes: int = MAX_BYTES, warn: Callable[[str], None] = _to_stderr
    ):
        self._folder = CacheFolder(root, warn)
        self.root = self._folder.root
        self.warn = warn
        self.max_bytes = max_bytes
        self.hits = 0
        self.misses = 0

    def get(self, key: str) -> dict[str, NDArray[Any]] | None:
        """Returns the arrays that were stored under ``key``, or None.

        Args:
            key: lower-case hex digest of all that the arrays depend on.
        """
        arrays = self._load(self._entry(key), key)
        self.hits += arrays is not None
        self.misses += arrays is None
        return arrays

    def put(self, key: str, arrays: Mapping[str, NDArray[Any]], *, subject: str, output: Path) -> None:
        """Stores arrays under ``key``, and a reference of this subject of this output folder."""
        path, data = self._entry(key), pack(key, arrays)
        if len(data) > self.max_bytes:
            self.warn(f"{path}: not cached: {len(data)} bytes are more than the cache holds, {self.max_bytes}")
        elif self._refer(key, subject, output):
            try:
                self._make_room(len(data), path)
                self._folder.write(path, data)
            except OSError as error:
                self.warn(f"{path}: not cached: {error.strerror or error}")

    def refer(self, key: str, *, subject: str, output: Path) -> None:
        """Stores a reference of this subject of this output folder to an entry."""
        self._entry(key)
        self._refer(key, subject, output)

    def uses(self, subjects: Collection[str]) -> dict[str, set[Path]]:
        """Returns the output folders that used each of these subjects; removes nothing.

        Raises:
            OSError: the cache cannot be read.
        """
        folders: dict[str, set[Path]] = {}
        for reference in self._kept(dict.fromkeys(subjects))[1]:
            folders.setdefault(reference.subject, set()).add(reference.output)
        return folders

    def kept(self, subjects: Collection[str] | Wanted) -> list[Path]:
        """Returns the files of these subjects that ``forget`` would remove from the cache.

        Raises:
            OSError: the cache cannot be read.
        """
        entries, references, _ = self._kept(_wanted(subjects))
        keys = {reference.key for reference in references}
        own = (path for path in entries if path.name.partition(".")[0] in keys)
        return sorted({*own, *(reference.path for reference in references)})

    def forget(self, subjects: Collection[str] | Wanted) -> dict[str, list[Path]]:
        """Removes these subjects: their entries, and their crops in every output folder that used them.

        It also removes an entry that another subject or output folder shares, because that is the same picture, and an
        entry without a readable reference, because it could be of any subject. A run that renders the subject at the
        same time may store it again.

        Args:
            subjects: ids, or ids with the output folders in which the subject is to be forgotten.

        Returns:
            The existing output folders of each subject that the cache knew. A crop that cannot be removed is
            reported to ``warn``; calling this again tries again.

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

    def _kept(self, wanted: Wanted, *, removing: bool = False) -> tuple[list[Path], list[Reference], list[Reference]]:
        """Returns entries of subjects, the references to them, and the references of others to the same entries."""
        try:
            self._folder.tighten()
        except FileNotFoundError:
            return [], [], []
        files = self._folder.files()  # before the references: each of these entries already has one
        references = list(self._folder.references(removing=removing))
        mine = [one for one in references if one.subject in wanted and _is_in(one.output, wanted[one.subject])]
        doomed, known = {reference.key for reference in mine}, {reference.key for reference in references}
        entries = [
            path
            for path, key, kind in files
            if (key in doomed if kind == "part" else kind == "entry" and (key in doomed or key not in known))
        ]
        return entries, mine, [one for one in references if one.key in doomed and one not in mine]

    def _forget_crops(self, references: Iterable[Reference]) -> dict[str, list[Path]]:
        outputs: dict[str, set[Path]] = {}
        for path, _, subject, output in references:
            there = outputs.setdefault(subject, set())
            crops = faces(output, subject)
            try:
                if output.is_dir():
                    there.add(output)
                    remove(crops)
                else:
                    self.warn(f"{output}: missing; if it is on a disk that is not connected, remove {crops} by hand")
            except OSError as error:
                self.warn(f"{crops}: cannot be removed: {error.strerror or error}")
            else:
                path.unlink(missing_ok=True)
        return {subject: sorted(there) for subject, there in outputs.items()}

    def _entry(self, key: str) -> Path:
        if not KEY.fullmatch(key):
            raise ValueError(f"{key!r}: a key is a lower-case hex digest, 16 to 128 digits")
        return self.root / f"{key}.safetensors"

    def _load(self, path: Path, key: str) -> dict[str, NDArray[Any]] | None:
        try:
            self._folder.tighten()
            arrays = unpack(key, read_file(path, self.max_bytes))
            with contextlib.suppress(OSError):  # a cache that can only be read is still useful
                if not self._folder.open:
                    path.chmod(0o600)
                os.utime(path)
            return arrays
        except FileNotFoundError:
            return None
        except OSError as error:
            self.warn(f"{path}: not used: {error.strerror or error}")
        except ValueError as error:
            self.warn(f"{path}: {error}; removed, to be computed again")
            with contextlib.suppress(OSError):
                path.unlink()
        return None

    def _refer(self, key: str, subject: str, output: Path) -> bool:
        """Writes a reference. Returns False if that fails: an entry without a reference could never be found."""
        if not ID.fullmatch(subject):
            raise ValueError(f"{subject!r}: {ID_ALLOWED}")
        record = {"version": 1, "subject": subject, "output": os.path.abspath(output)}
        text = (json.dumps(record) + "\n").encode()  # ASCII: a path of any bytes survives
        path = self.root / f"{key}.{hashlib.sha256(text).hexdigest()[:16]}.json"
        try:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            self.root.mkdir(mode=0o700, exist_ok=True)
            self._folder.tighten()
            with contextlib.suppress(FileNotFoundError, ValueError):
                if read_file(path, MAX_REFERENCE_BYTES) == text:
                    return True
            self._folder.write(path, text)
        except OSError as error:
            self.warn(f"{path}: not cached: {error.strerror or error}")
            return False
        return True

    def _make_room(self, size: int, path: Path) -> None:
        """Evicts entries until an entry of ``size`` bytes at ``path`` fits into ``max_bytes``."""
        used = []
        for file, _, kind in self._folder.files():
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


def _wanted(subjects: Collection[str] | Wanted) -> Wanted:
    return subjects if isinstance(subjects, Mapping) else dict.fromkeys(subjects)


def _is_in(output: Path, outputs: Collection[Path] | None) -> bool:
    return outputs is None or output in outputs


def faces(output: Path, subject: str) -> Path:
    """Returns the folder of a subject's crops in an output folder, see ``crops.Crops``."""
    return faces_folder(output) / subject
