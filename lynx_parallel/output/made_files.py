"""Files that a command makes from finished shots, in a folder of their own, and records of them.

The records are in ``<folder>/.lynx-made/records/``. A record says what a file was made from, and how, so that the next
run makes only what is missing or out of date. A file without a record is not ours and is never replaced. Imports
neither torch nor Ray.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lynx_parallel.errors import ClusterError
from lynx_parallel.output.atomic import atomic_write, move, publish, publish_folder
from lynx_parallel.output.checksums import sha256_file

RECORD_VERSION = 1
MADE = ".lynx-made"
"""Name of the folder for records, logs and temporaries."""

State = Literal["done", "left", "other", "foreign"]


@dataclass(frozen=True)
class Source:
    """What a file is made from, and how.

    Attributes:
        input: sha256 of the file that is read.
        how: command or settings, as JSON has them: lists, no tuples.
    """

    input: str
    how: Any


class MadeFiles:
    """Files that a command makes in a folder. A file may also be a folder of files, such as one with frames.

    Attributes:
        private: ``<folder>/.lynx-made``.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.private = folder / MADE
        self._parts = self.private / "parts"

    def path(self, file: str) -> Path:
        """Returns the path of a file by its name, which is relative to the folder."""
        return self.folder / file

    def log(self, file: str, stream: str) -> Path:
        """Returns where the output of the tool that makes a file is kept."""
        return self.private / "logs" / f"{file}.{stream}.log"

    def state(self, file: str, source: Source) -> State:
        """Returns the state of a file.

        Returns:
            ``done``: made from this source; ``left``: to be made, or made from another input; ``other``: made in
            another way; ``foreign``: not made by ``publish``, or changed since.
        """
        path, record = self.path(file), self._record(file)
        if not os.path.lexists(path):
            return "left"
        if record is None:
            return "foreign"
        if not _is(path, record["made"]):
            # A run was killed after it wrote the record, before it replaced the file.
            return "left" if _is(path, record.get("replaces")) else "foreign"
        if record["how"] != source.how:
            return "other"
        return "done" if record["input"] == source.input else "left"

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Lets one process at a time make files here, and removes what a killed one left half-written.

        Raises:
            ClusterError: another process is at work here.
            OSError: the folder cannot be made.
        """
        self._parts.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(self.folder):
            shutil.rmtree(self._parts, ignore_errors=True)
            try:
                yield
            finally:
                shutil.rmtree(self._parts, ignore_errors=True)

    def part(self, file: str) -> Path:
        """Returns where to write a file before it is complete: a path with the same suffix in an empty folder.

        Only the process in ``working`` may call it. Tools may write further temporaries beside it.
        """
        name = hashlib.sha256(file.encode(errors="surrogateescape")).hexdigest()[:16]
        folder = self._parts / f"{os.getpid()}-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder / Path(file).name

    def discard(self, part: Path) -> None:
        """Removes a temporary of ``part`` with all that lies beside it."""
        shutil.rmtree(part.parent, ignore_errors=True)

    def publish(self, part: Path, file: str, source: Source) -> dict[str, Any]:
        """Makes a complete temporary the file. The record comes first, so that a file of ours always has one.

        Returns:
            Size and sha256 of the file.

        Raises:
            FileExistsError: a file that is not ours has appeared there meanwhile.
        """
        path = self.path(file)
        there = os.path.lexists(path)
        if there and self.state(file, source) == "foreign":
            raise FileExistsError(f"{path}: appeared while it was made; it is not replaced")
        made = {**_content(part), "mtime_ns": _facts(part)[1]}
        record = {
            "version": RECORD_VERSION, "file": file, "input": source.input, "how": source.how, "made": made,
            **({"replaces": _content(path)} if there else {}),
        }  # fmt: skip
        where = self._record_path(file)
        where.parent.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(where) as written:
            written.write_text(json.dumps(record))
        if part.is_dir():
            if there:
                move(path, part.with_name("replaced"))
            publish_folder(part, path)
        else:
            publish(part, path)
        self.discard(part)
        return {"size": made["size"], "sha256": made["sha256"]}

    def _record_path(self, file: str) -> Path:
        return self.private / "records" / f"{file}.json"

    def _record(self, file: str) -> dict[str, Any] | None:
        """Returns the record of a file, or None if there is none that can be read."""
        try:
            record = json.loads(self._record_path(file).read_bytes())
            usable = record["version"] == RECORD_VERSION and {"input", "how"} <= record.keys()
            return record if usable and isinstance(record["made"], dict) else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Holds a folder for this process. The system frees it when the process ends, however it ends.

    Raises:
        ClusterError: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ClusterError(f"{folder}: another lynx-render writes here; wait for its end") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(descriptor)


def _files(path: Path) -> list[Path]:
    return sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]


def _facts(path: Path) -> tuple[int, int]:
    """Returns the size of a file, or of all files of a folder, and the time of the last change."""
    status = [file.stat() for file in _files(path)]
    return sum(one.st_size for one in status), max((one.st_mtime_ns for one in status), default=0)


def _content(path: Path) -> dict[str, Any]:
    """Returns size and sha256 of a file, or of a folder by the names and the contents of its files."""
    if not path.is_dir():
        return {"size": path.stat().st_size, "sha256": sha256_file(path)}
    lines = [f"{sha256_file(file)}  {file.relative_to(path)}\n" for file in _files(path)]
    sha256 = hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
    return {"size": _facts(path)[0], "sha256": sha256}


def _is(path: Path, known: Any) -> bool:
    """Returns whether a file is the recorded one. Its content is read if the time of the last change differs."""
    if not isinstance(known, dict):
        return False
    try:
        size, mtime_ns = _facts(path)
        if size != known.get("size"):
            return False
        return mtime_ns == known.get("mtime_ns") or _content(path)["sha256"] == known.get("sha256")
    except OSError:
        return False
