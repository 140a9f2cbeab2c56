"""Makes the status of a run from the board of its supervisor, shows it, and writes it to the output folder."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_parallel.engine.observer import Observer
from lynx_parallel.engine.queue import Slot
from lynx_parallel.engine.summary import Summary
from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import now
from lynx_parallel.output.run_status import MOST_FAILURES, FailedShot, GangStatus, RunStatus, State, write_status
from lynx_parallel.plan.plan import Plan
from lynx_parallel.rank.messages import Progress

if TYPE_CHECKING:
    from lynx_parallel.engine.parts import InTurn

LOOK_EVERY_S = 1.0
"""Seconds between two statuses that are shown."""
WRITE_EVERY_S = 2.0
"""Seconds between two statuses that are written."""
ENOUGH = 0.002
"""Part of the work after which the rest is estimated from it."""


def first_status(run: str, manifest: Path, plan: Plan, to_make: int) -> RunStatus:
    """Returns the status of a run that begins.

    Args:
        run: name of its record.
        to_make: number of shots to make.
    """
    return RunStatus(
        run, str(manifest), socket.gethostname(), os.getpid(), now(), total=len(plan.items), to_make=to_make,
        done=len(plan.of("done")), blocked=len(plan.of("blocked")),
    )  # fmt: skip


class Monitor:
    """The status of one run.

    Args:
        output: where the status is written.
        first: status with everything that does not change.
        cost: work of each shot, by name, in any unit.
        observer: takes each status; as an event, each that is written.
        clock: seconds.
    """

    def __init__(
        self,
        output: Output,
        first: RunStatus,
        summary: Summary,
        cost: Mapping[str, float],
        observer: Observer,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._output = output
        self._first = first
        self._summary = summary
        self._cost = cost
        self._observer = observer
        self._clock = clock
        self._began = self._looked = clock()
        self._written = -WRITE_EVERY_S
        self._gpu_seconds = 0.0
        self._device = ""
        self._runs: InTurn | None = None
        self._awaited: set[str] = set()
        self._ready: Callable[[], None] = lambda: None
        self._working: tuple[float, float] | None = None  # time and fraction when the first shot began

    def tell_when(self, names: Set[str], ready: Callable[[], None]) -> None:
        """Calls ``ready`` once in a thread of its own, when these shots are finished and others are left."""
        self._awaited, self._ready = set(names), ready

    def show(self, state: State = "starting", exit_code: int | None = None) -> None:
        """Shows and writes the status now."""
        status = self._status(state, exit_code)
        self._observer.watch(status)
        if self._clock() - self._written >= WRITE_EVERY_S or exit_code is not None:
            self._written = self._clock()
            write_status(self._output.status, status)
            self._observer.event({"event": "status", "time": status.updated, "status": status.as_json()})

    async def follow(self, runs: InTurn) -> None:
        """Shows the status of these runs until it is cancelled."""
        self._runs = runs
        while True:
            self.show("running" if self._summary.stopped_by is None else "stopping")
            if self._awaited and not self._awaited & set(left := list(self._unfinished())) and left:
                self._awaited.clear()
                await asyncio.to_thread(self._ready)
            await asyncio.sleep(LOOK_EVERY_S)

    def _status(self, state: State, exit_code: int | None) -> RunStatus:
        summary, at = self._summary, self._clock()
        slots = self._slots() if exit_code is None else []
        self._gpu_seconds += (at - self._looked) * sum(slot.ranks for slot in slots)
        self._looked = at
        gangs = tuple(map(_gang, slots))
        self._device = next((gang.device for gang in gangs if gang.device), self._device)
        fraction = self._fraction(slots)
        if self._working is None and any(gang.stage == "denoising" for gang in gangs):
            self._working = at, fraction
        failures = tuple(
            FailedShot(
                name, reason, str(self._output.logs(name, 0).parent.relative_to(self._output.folder)),
                summary.codes.get(name, ""),
            )
            for name, reason in summary.failed[-MOST_FAILURES:]
        )  # fmt: skip
        return replace(
            self._first, updated=now(), state=state if exit_code is None else "ended",
            rendered=len(summary.rendered), encoded=len(summary.encoded), failed=len(summary.failed),
            retries=summary.retries, fraction=round(fraction, 4), seconds=round(at - self._began, 1),
            left_seconds=None if exit_code is not None else self._left(at, fraction),
            gpu_seconds=round(self._gpu_seconds, 1), device=self._device, gangs=gangs, failures=failures,
            exit_code=exit_code,
        )  # fmt: skip

    def _slots(self) -> list[Slot]:
        """Returns the slots that have a gang or start one."""
        if self._runs is None:
            return []
        return [slot for slot in self._runs.current.board.slots if slot.ranks and not slot.closed]

    def _left(self, at: float, fraction: float) -> float | None:
        """Returns the seconds to the end, from the rate since the first shot began; None before anything is known."""
        if self._working is None:
            return None
        since, before = self._working
        if fraction - before < ENOUGH or fraction >= 1:
            return None
        return round((at - since) * (1 - fraction) / (fraction - before))

    def _fraction(self, slots: Sequence[Slot]) -> float:
        whole = sum(self._cost.values())
        if not whole:
            return 1.0
        left = sum(self._cost.get(name, 0.0) for name in self._unfinished())
        begun = sum(
            self._cost.get(slot.attempt.item.shot.name, 0.0) * slot.seen.step / slot.seen.total
            for slot in slots
            if slot.attempt is not None and slot.seen is not None and slot.seen.total
            and slot.attempt.stage == "denoising"
        )  # fmt: skip
        return min(max(1 - (left - begun) / whole, 0.0), 1.0)

    def _unfinished(self) -> Iterator[str]:
        if self._runs is None:
            finished = {*self._summary.rendered, *self._summary.encoded, *(name for name, _ in self._summary.failed)}
            yield from (name for name in self._cost if name not in finished)
            return
        for supervisor in self._runs.supervisors:
            for work in (*supervisor.board.queue.left(), *supervisor.board.running):
                yield work.item.shot.name


def _gang(slot: Slot) -> GangStatus:
    """Returns what the gang of a slot does."""
    hellos = slot.gang.hellos if slot.gang is not None else []
    attempt, seen = slot.attempt, slot.seen or Progress(0, 0, 0.0)
    status = GangStatus(
        stage=slot.doing if slot.gang is None else "idle",
        read=seen.read if slot.gang is None else 0, to_read=seen.to_read if slot.gang is None else 0,
        memory=seen.memory, memory_total=seen.memory_total, ranks=slot.ranks,
        device=hellos[0].device if hellos else "", hosts=tuple(sorted({hello.host for hello in hellos})),
        finishing=sum(not task.done() for task in slot.finishing),
    )  # fmt: skip
    if slot.gang is None or attempt is None or (attempt.stage == "encoding" and attempt.item.action == "render"):
        return status
    stage = attempt.stage
    if stage == "denoising" and seen.waits_for:
        stage = f"waiting for {seen.waits_for}"
    elif stage == "denoising" and 0 < seen.total <= seen.step:
        stage = "decoding"
    total = attempt.item.shot.sampling.num_inference_steps if attempt.item.action == "render" else 0
    return replace(
        status, stage=stage, shot=attempt.item.shot.name, step=seen.step if attempt.stage == "denoising" else 0,
        total=total, step_seconds=slot.step_seconds,
    )  # fmt: skip
