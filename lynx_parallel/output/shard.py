"""Shards: parts of a campaign that drivers without a common Ray cluster render side by side.

A shard has a folder of its own, ``<output>/.lynx/shards/2-of-8/``, with its lock, journal and status. Everything else
in the output folder is shared. Imports neither torch nor Ray.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lynx_parallel.errors import FolderInUse
from lynx_parallel.output.lock import Lock, holder

_FOLDER = re.compile(r"([0-9]+)-of-([0-9]+)", re.ASCII)


@dataclass(frozen=True, order=True)
class Shard:
    """One of ``count`` shards of a campaign. ``number`` counts from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"{self.number}-of-{self.count}"


def shard_folders(private: Path) -> Iterator[tuple[Shard, Path]]:
    """Yields the shards that were ever rendered, in order, each with its folder.

    Args:
        private: the folder ``.lynx``.
    """
    found = [(match, path) for path in (private / "shards").glob("*") if (match := _FOLDER.fullmatch(path.name))]
    yield from sorted((Shard(int(match[1]), int(match[2])), path) for match, path in found)


class FolderLock(Lock):
    """The lock of a whole output folder, or of one shard.

    Shards of one division may be rendered at the same time, each by one driver. A driver of the whole folder excludes
    them all, and so do shards of another division, or of a manifest with other shots.

    Args:
        private: the folder ``.lynx``.
        shard: None for the whole folder.
        shots: digest of all shots that the shards divide, see ``plan.shards``.

    Raises:
        FolderInUse: another driver is at work on any of the same shots; see also ``Lock``.
    """

    def __init__(self, private: Path, shard: Shard | None = None, shots: str = ""):
        own = private / "shards" / shard.folder if shard else private
        super().__init__(own / "lock", {"shots": shots}, private.parent)
        self._private = private
        self._shard = shard
        self._shots = shots

    def refuse(self) -> None:
        super().refuse()
        self._refuse_rivals()

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self._refuse_rivals()
        except FolderInUse:
            self.__exit__()
            raise
        return self

    @property
    def alone(self) -> bool:
        """Whether no driver of another shard is at work."""
        return not any(alive for _, _, _, alive in self._others())

    def _refuse_rivals(self) -> None:
        for name, path, who, alive in self._others():
            if alive and self._is_rival(name, path):
                at_work = f"on shard {name} of another division or manifest" if self._shard and name else ""
                at_work = at_work or (f"on shard {name}" if name else "on the whole campaign")
                raise FolderInUse(
                    f"{self._private.parent}: another driver is at work here, {at_work}: {who}; "
                    f"if it is gone for good, remove {path}"
                )

    def _is_rival(self, name: Shard | None, path: Path) -> bool:
        if self._shard is None or name is None or name.count != self._shard.count:
            return True
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            return bool(json.loads(path.read_bytes())["shots"] != self._shots)
        return False  # it ends just now, or cannot be read: its shots are others

    def _others(self) -> Iterator[tuple[Shard | None, Path, str, bool]]:
        """Yields every other lock that is held: shard, path, holder in words, and whether that driver is alive."""
        locks: list[tuple[Shard | None, Path]] = [(None, self._private / "lock")]
        locks += [(shard, folder / "lock") for shard, folder in shard_folders(self._private)]
        for shard, path in locks:
            if path != self.path and (held := holder(path)) is not None:
                yield shard, path, *held
