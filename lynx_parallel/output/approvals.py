"""Stores which finished shots the user has allowed to be made again. Imports neither torch nor Ray.

They are kept in the output folder, so that a job that is queued again does not ask again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from lynx_parallel.output.journal import now


class Approvals:
    """The approvals of one output folder, in a file with one JSON object a line.

    Args:
        path: of the file, which may not exist yet.
    """

    def __init__(self, path: Path):
        self._path = path
        self._given: set[str] = set()
        try:
            lines = path.read_bytes().splitlines()
        except OSError:
            lines = []
        for line in lines:
            try:
                self._given.update(map(str, json.loads(line)["transitions"]))
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # the last line of a killed driver

    def cover(self, transitions: Iterable[str]) -> bool:
        """Returns whether all of these were approved; see ``changes.Change``."""
        return self._given.issuperset(transitions)

    def add(self, transitions: Iterable[str], by: str, reasons: Iterable[str]) -> None:
        """Stores an approval.

        Args:
            by: how it was given: ``--yes``, for example.
            reasons: what was approved, in words.

        Raises:
            OSError: the file cannot be written.
        """
        new = sorted(set(transitions) - self._given)
        record = {"time": now(), "by": by, "reasons": list(reasons), "transitions": new}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write(("\n" if file.tell() else "").encode() + json.dumps(record, ensure_ascii=False).encode())
        self._given.update(new)
