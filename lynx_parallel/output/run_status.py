"""The status of a run, which its driver writes to ``<output>/.lynx/status.json`` every few seconds.

``lynx-render status`` reads it, also on another machine and after the run has ended. Imports neither torch nor Ray.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from lynx_parallel.output.atomic import replace_at_once
from lynx_parallel.output.sidecar import encode_text

STATUS_VERSION = 1
MOST_FAILURES = 20
"""Failures that a status lists. ``failures`` counts all of them."""

State = Literal["starting", "running", "stopping", "ended"]


@dataclass(frozen=True)
class GangStatus:
    """What one gang does.

    Attributes:
        stage: such as ``loading the weights`` or ``denoising``, in words.
        shot: its name; empty without a shot.
        step, total: denoising steps that are done, and all steps.
        step_seconds: seconds of a step of this shot; None before the first.
        read, to_read: bytes of the weights that rank 0 has read, and all that it reads.
        memory, memory_total: bytes in use on the gang's fullest GPU, and all of it; 0 on the CPU.
        ranks: number of ranks.
        device: ``cpu`` or the name of the GPU; empty before the ranks have started.
        hosts: names of the machines.
        finishing: shots that are decoded, and that rank 0 encodes beside the next one.
    """

    stage: str = ""
    shot: str = ""
    step: int = 0
    total: int = 0
    step_seconds: float | None = None
    read: int = 0
    to_read: int = 0
    memory: int = 0
    memory_total: int = 0
    ranks: int = 0
    device: str = ""
    hosts: tuple[str, ...] = ()
    finishing: int = 0


@dataclass(frozen=True)
class FailedShot:
    """A failed shot, with its reason, the folder of its last logs, relative to the output folder, and its code."""

    name: str
    reason: str
    logs: str = ""
    code: str = ""


@dataclass(frozen=True)
class RunStatus:
    """The status of one run.

    Attributes:
        run: name of the run's record, see ``inputs.records``.
        manifest: its path.
        host, pid: of the driver.
        started, updated: times, ISO 8601.
        total: shots of the manifest; ``to_make`` of them were to be made when the run began.
        done: shots that were done before the run.
        rendered, encoded, failed, blocked, retries: counts of this run.
        auditioned: previews that this run has made.
        not_chosen: takes that were not chosen in their audition, before the run or in it.
        waiting: takes that wait for a person's choice.
        withheld: shots that the safety checker withheld in this run.
        ended: takes of this run that were not chosen or wait, and withheld shots: no more work for this run.
        candidates: videos of this run that were not good enough.
        below: finished shots of this run whose best video is not good enough.
        steps: denoising steps that this run has made. Steps that a failed attempt loses, and that are made again, count
            once.
        fraction: part of the run's work that is done, from 0 to 1.
        seconds: since the run began; ``left_seconds`` to its end, estimated, or None.
        gpu_seconds: seconds that ranks have existed, summed over them; on the CPU also.
        device: ``cpu`` or the name of a GPU; empty before the first ranks have started.
        gangs: those that exist or start.
        failures: the last failures.
        exit_code: None before the end.
    """

    run: str = ""
    manifest: str = ""
    host: str = ""
    pid: int = 0
    started: str = ""
    updated: str = ""
    state: State = "starting"
    total: int = 0
    to_make: int = 0
    done: int = 0
    rendered: int = 0
    encoded: int = 0
    failed: int = 0
    blocked: int = 0
    retries: int = 0
    fraction: float = 0.0
    seconds: float = 0.0
    left_seconds: float | None = None
    gpu_seconds: float = 0.0
    device: str = ""
    gangs: tuple[GangStatus, ...] = ()
    failures: tuple[FailedShot, ...] = ()
    exit_code: int | None = None
    version: int = field(default=STATUS_VERSION)
    steps: int = 0
    auditioned: int = 0
    not_chosen: int = 0
    waiting: int = 0
    withheld: int = 0
    ended: int = 0
    candidates: int = 0
    below: int = 0

    @property
    def finished(self) -> int:
        """Shots of this run that need no more work."""
        return self.rendered + self.encoded + self.failed + self.ended

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def write_status(path: Path, status: RunStatus) -> None:
    """Replaces the status at once. An error, such as a full disk, leaves the old status."""
    with contextlib.suppress(OSError):
        replace_at_once(path, encode_text(json.dumps(status.as_json(), ensure_ascii=False)))


def read_status(path: Path) -> RunStatus | None:
    """Returns the status in a file, or None if there is none that this version can read."""
    try:
        found = json.loads(path.read_bytes())
        if found["version"] != STATUS_VERSION:
            return None
        gangs = tuple(GangStatus(**_known(GangStatus, gang, hosts=tuple(gang["hosts"]))) for gang in found["gangs"])
        failures = tuple(FailedShot(**_known(FailedShot, one)) for one in found["failures"])
        return RunStatus(**_known(RunStatus, found, gangs=gangs, failures=failures))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _known(kind: type[Any], found: dict[str, Any], **others: Any) -> dict[str, Any]:
    """Returns the keys that this version knows. A later version may add some."""
    names = {one.name for one in fields(kind)}
    return {key: value for key, value in {**found, **others}.items() if key in names}
