"""What the files of an output folder say about each shot. Settings are not compared: that is what ``plan`` does.

Imports neither torch nor Ray.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from lynx_parallel.output.folder import Output

State = Literal["done", "failed", "blocked", "left"]


@dataclass(frozen=True)
class ShotState:
    """The state of one shot.

    Attributes:
        state: ``done``: its sidecar and its video exist; ``failed``, ``blocked``: it is not done, and that was the
            result of the last run that tried it; ``left``: not done.
        reason: why it failed or is blocked.
        logs: folder of its attempts' logs, relative to the output folder; empty without logs.
        sidecar: None if it is not done.
    """

    name: str
    state: State
    reason: str = ""
    logs: str = ""
    sidecar: Mapping[str, Any] | None = None


def shot_states(output: Output, names: Iterable[str] | None = None) -> list[ShotState]:
    """Returns the state of each shot.

    Args:
        names: of all shots of a manifest, in order; None for those that the folder knows, by name.
    """
    last = _last_results(output.journal)
    if names is None:
        names = sorted({name for name, _ in output.sidecars(names=last.keys())} | last.keys())
    return [_state(output, name, last.get(name)) for name in names]


def count_states(states: Sequence[ShotState]) -> dict[State, int]:
    """Returns the number of shots in each state."""
    count = Counter(shot.state for shot in states)
    return {state: count[state] for state in get_args(State)}


def _state(output: Output, name: str, last: tuple[str, str] | None) -> ShotState:
    sidecar = output.sidecar(name)
    if sidecar is not None and os.path.exists(output.path(name, "video")):
        return ShotState(name, "done", sidecar=sidecar)
    event, reason = last or ("", "")
    folder = output.logs(name, 0).parent
    logs = str(folder.relative_to(output.folder)) if folder.is_dir() else ""
    if event == "failed":
        return ShotState(name, "failed", reason, logs)
    if event == "blocked":
        return ShotState(name, "blocked", reason, logs)
    return ShotState(name, "left", logs=logs)


def _last_results(journal: Path) -> dict[str, tuple[str, str]]:
    """Returns the last event of each shot that the journal knows, and its reason."""
    last: dict[str, tuple[str, str]] = {}
    with contextlib.suppress(OSError), journal.open("rb") as lines:
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                record = json.loads(line)
                last[str(record["name"])] = str(record["event"]), str(record.get("reason", ""))
    return last
