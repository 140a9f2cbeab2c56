"""The journal: the append-only history of an output folder. Imports neither torch nor Ray."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lynx_parallel.output.sidecar import encode_text


class Journal:
    """An append-only history with one JSON object per line. Only the driver writes it.

    A record that cannot be written, to a full disk say, is kept and written with the next: history fails no shot.

    Attributes:
        unwritten: bytes that are still to be written.

    Args:
        listen: takes each record, with its time.
    """

    def __init__(self, path: Path, listen: Callable[[Mapping[str, Any]], None] = lambda record: None):
        self._listen = listen
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        torn = self._file.tell() and not _ends_with_newline(path)  # the last line of a killed driver
        self.unwritten = b"\n" if torn else b""

    def append(self, event: str, **record: Any) -> None:
        self.extend([{"event": event, **record}])

    def extend(self, records: Iterable[dict[str, Any]]) -> None:
        """Appends many records at once; ``event`` is one of their keys."""
        timed = [{"time": now(), **record} for record in records]
        for record in timed:
            self._listen(record)
        lines = (json.dumps(record, ensure_ascii=False) for record in timed)
        self.unwritten += b"".join(encode_text(line) + b"\n" for line in lines)
        try:
            while self.unwritten:
                self.unwritten = self.unwritten[self._file.write(self.unwritten) :]
            os.fsync(self._file.fileno())
        except OSError:
            return

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class History:
    """The content of journals. Lines that cannot be read are skipped.

    Attributes:
        attempted: names of all shots it knows of.
        finished: names of those that were done once.
        done: video digests of those it knows to be done.
    """

    attempted: set[str]
    finished: set[str]
    done: set[str]

    @classmethod
    def read(cls, *journals: Path) -> History:
        history = cls(set(), set(), set())
        for record in read_journals(*journals):
            with contextlib.suppress(KeyError, TypeError):
                history.attempted.add(str(record["name"]))
                if record["event"] == "done":
                    history.finished.add(str(record["name"]))
                    history.done.add(str(record["video"]))
        return history


def read_journals(*journals: Path) -> Iterator[dict[str, Any]]:
    """Yields the records of journals, one journal after another. Skips missing files and lines that cannot be read."""
    for journal in journals:
        with contextlib.suppress(OSError), journal.open("rb") as lines:
            for line in lines:
                with contextlib.suppress(ValueError, RecursionError):
                    if isinstance(record := json.loads(line), dict):
                        yield record


def now() -> str:
    """Returns the current time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
