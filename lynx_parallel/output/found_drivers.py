"""The drivers of an output folder, by the files that they leave. Imports neither torch nor Ray."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lynx_parallel.output.folder import Output
from lynx_parallel.output.lock import holder
from lynx_parallel.output.run_status import RunStatus, read_status
from lynx_parallel.output.shard import Shard, shard_folders


@dataclass(frozen=True)
class FoundDriver:
    """The driver that is at work on a campaign or a shard, or the last one.

    Attributes:
        shard: None for the whole campaign.
        status: of its run; None if there is none that this version can read.
        who: its process and machine, in words; empty if nobody holds the lock.
        alive: see ``lock.holder``.
    """

    shard: Shard | None
    status: RunStatus | None
    who: str = ""
    alive: bool = False

    def as_json(self) -> dict[str, Any]:
        run = self.status.as_json() if self.status else None
        return {"shard": str(self.shard or ""), "alive": self.alive, "driver": self.who, "run": run}


def find_drivers(output: Output) -> list[FoundDriver]:
    """Returns the driver of the whole folder, and then that of each shard that was ever rendered."""
    private = output.private
    return [_find(None, private), *(_find(shard, folder) for shard, folder in shard_folders(private))]


def _find(shard: Shard | None, folder: Path) -> FoundDriver:
    status = read_status(folder / "status.json")
    who, alive = holder(folder / "lock") or ("", False)
    return FoundDriver(shard, status, who, alive)
