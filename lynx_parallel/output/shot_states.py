"""What the files of an output folder say about each shot. Settings are not compared: that is what ``plan`` does.

Imports neither torch nor Ray.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import read_journals
from lynx_parallel.output.sidecar import SUFFIXES, looks_like_sidecar

State = Literal["done", "failed", "blocked", "withheld", "auditioned", "not chosen", "left"]


@dataclass(frozen=True)
class ShotState:
    """The state of one shot.

    Attributes:
        state: ``done``: its sidecar and its video exist; ``failed``, ``blocked``: it is not done, and that was the
            result of the last run that tried it; ``withheld``: by the safety checker;
            ``auditioned``: its preview waits for other takes or a person;
            ``not chosen``: other takes were chosen; ``left``: not done.
        reason: why it failed or is blocked.
        logs: folder of its attempts' logs, relative to the output folder; empty without logs.
        code: of the failure, see ``docs/troubleshooting.md``; empty in journals of earlier versions.
        sidecar: None if it is not done, or was not read.
    """

    name: str
    state: State
    reason: str = ""
    logs: str = ""
    code: str = ""
    sidecar: Mapping[str, Any] | None = None


def shot_states(output: Output, names: Iterable[str] | None = None, *, read: bool = True) -> list[ShotState]:
    """Returns the state of each shot.

    Args:
        names: of all shots of a manifest, in order; None for those that the folder knows, by name.
        read: whether sidecars are read. Otherwise their beginnings are looked at, and states have no sidecar.
    """
    last = last_results(output)
    if names is None:
        suffix = SUFFIXES["sidecar"]
        found = {file.removesuffix(suffix) for file in output.files(last.keys()) if file.endswith(suffix)}
        names = sorted({name for name in found if looks_like_sidecar(f"{output.folder}/{name}{suffix}")} | last.keys())
    return [_state(output, name, last.get(name), read) for name in names]


def count_states(states: Sequence[ShotState]) -> dict[State, int]:
    """Returns the number of shots in each state."""
    count = Counter(shot.state for shot in states)
    return {state: count[state] for state in get_args(State)}


def _state(output: Output, name: str, last: tuple[str, str, str] | None, read: bool) -> ShotState:
    sidecar = output.sidecar(name) if read else None
    path = os.path.join(output.folder, name)  # without the cost of a Path, because there may be many shots
    there = sidecar is not None if read else looks_like_sidecar(path + SUFFIXES["sidecar"])
    if there and os.path.exists(path + SUFFIXES["video"]):
        return ShotState(name, "done", sidecar=sidecar)
    event, reason, code = last or ("", "", "")
    folder = output.logs(name, 0).parent
    logs = str(folder.relative_to(output.folder)) if folder.is_dir() else ""
    if event == "failed":
        return ShotState(name, "failed", reason, logs, code)
    if event == "blocked":
        return ShotState(name, "blocked", reason, logs, code)
    if event == "withheld":
        return ShotState(name, "withheld", reason, code=code)
    if event == "not chosen":
        return ShotState(name, "not chosen", reason, logs)
    if event == "auditioned":
        return ShotState(name, "auditioned", logs=logs)
    return ShotState(name, "left", logs=logs)


def last_results(output: Output) -> dict[str, tuple[str, str, str]]:
    """Returns the last event of each shot that the journals know, its reason and its code."""
    last: dict[str, tuple[str, str, str, str]] = {}
    for record in read_journals(*output.journals):
        with contextlib.suppress(KeyError):
            name, time = str(record["name"]), str(record.get("time", ""))
            if name not in last or time >= last[name][0]:  # a shot may have been tried with and without shards
                reason, code = str(record.get("reason", "")), str(record.get("code", ""))
                last[name] = time, str(record["event"]), reason, code
    return {name: result[1:] for name, result in last.items()}
