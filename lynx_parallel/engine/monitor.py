"""Makes the status of a run from the boards of its supervisors, shows it, and writes it to the output folders."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lynx_parallel.engine.observer import Observer
from lynx_parallel.engine.queue import ShotKey, Slot
from lynx_parallel.output.journal import now
from lynx_parallel.output.run_status import MOST_FAILURES, FailedShot, GangStatus, RunStatus, State, write_status
from lynx_parallel.plan.plan import Item
from lynx_parallel.plan.work import costs
from lynx_parallel.rank.messages import Progress

if TYPE_CHECKING:
    from lynx_parallel.engine.campaign_run import CampaignRun
    from lynx_parallel.engine.parts import InTurn

LOOK_EVERY_S = 1.0
"""Seconds between two statuses that are shown."""
WRITE_EVERY_S = 2.0
"""Seconds between two statuses that are written."""
ENOUGH = 0.002
"""Part of the work after which the rest is estimated from it."""

Chosen = Sequence[tuple["CampaignRun", Sequence[Item]]]
"""Campaigns, each with its shots to make."""


class Watcher:
    """Shows the status of a run, and writes that of each campaign to its output folder.

    Args:
        chosen: the campaigns of the run.
        observer: takes each status of the whole run; as an event, each that is written.
        clock: seconds.
    """

    def __init__(self, chosen: Chosen, observer: Observer, clock: Callable[[], float] = time.monotonic):
        self._observer = observer
        self._clock = clock
        alone = len(chosen) == 1
        self._each = [(campaign, Monitor([(campaign, todo)], clock, alone=alone)) for campaign, todo in chosen]
        self._whole = self._each[0][1] if alone else Monitor(chosen, clock)
        self._summary = chosen[0][0].summary
        self._first = {_key(campaign, item) for campaign, _ in chosen for item in campaign.first}
        self._ready: Callable[[], None] | None = None
        self._written = -WRITE_EVERY_S
        self._runs: InTurn | None = None

    def tell_when(self, ready: Callable[[], None]) -> None:
        """Calls ``ready`` once in a thread of its own, when the sample is finished and other shots are left."""
        self._ready = ready

    def show(self, state: State = "starting", exit_code: int | None = None) -> None:
        """Shows the status now, and writes it if the last one was written some time ago."""
        slots = [] if self._runs is None else self._runs.current.board.slots
        left = None if self._runs is None else set(unfinished(self._runs))
        writes = self._clock() - self._written >= WRITE_EVERY_S or exit_code is not None
        if writes:
            self._written = self._clock()
        for campaign, monitor in self._each:
            status = monitor.status(slots, left, state, exit_code)
            if monitor is self._whole:
                self._observer.watch(status)
            if writes:
                write_status(campaign.output.status, status)
                self._observer.event(
                    {"event": "status", "time": status.updated, "status": status.as_json(),
                     "output": str(campaign.output.folder)}
                )  # fmt: skip
        if len(self._each) > 1:
            self._observer.watch(self._whole.status(slots, left, state, exit_code))

    async def follow(self, runs: InTurn) -> None:
        """Shows the status of these runs until it is cancelled."""
        self._runs = runs
        while True:
            self.show("running" if self._summary.stopped_by is None else "stopping")
            if self._ready is not None and self._first.isdisjoint(left := set(unfinished(runs))) and left:
                ready, self._ready = self._ready, None
                await asyncio.to_thread(ready)
            await asyncio.sleep(LOOK_EVERY_S)


class Monitor:
    """Makes the status of one campaign of a run, or of all campaigns together.

    Args:
        chosen: the campaigns.
        clock: seconds.
        alone: whether the run has no other campaigns. The time of a gang between two shots then counts for these.
    """

    def __init__(self, chosen: Chosen, clock: Callable[[], float], *, alone: bool = True):
        self._campaigns = [campaign for campaign, _ in chosen]
        self._clock = clock
        self._alone = alone
        self._cost: Mapping[ShotKey, float] = {
            (str(campaign.output.folder), name): cost
            for campaign, todo in chosen
            for name, cost in costs(campaign.parts, todo).items()
        }
        self._whole_cost = sum(self._cost.values())
        plans = [campaign.plan for campaign in self._campaigns]
        self._first = RunStatus(
            self._campaigns[0].name, ", ".join(str(campaign.campaign.path) for campaign in self._campaigns),
            socket.gethostname(), os.getpid(), now(), total=sum(len(plan.items) for plan in plans),
            to_make=sum(len(todo) for _, todo in chosen), done=sum(len(plan.of("done")) for plan in plans),
            blocked=sum(len(plan.of("blocked")) for plan in plans),
            not_chosen=sum(len(plan.of("not chosen")) for plan in plans),
        )  # fmt: skip
        self._began = self._looked = clock()
        self._gpu_seconds = 0.0
        self._device = ""
        self._steps = 0
        self._working: tuple[float, float] | None = None  # time and fraction when the first shot began

    def status(
        self, slots: Sequence[Slot], left: set[ShotKey] | None, state: State, exit_code: int | None
    ) -> RunStatus:
        """Returns the status now.

        Args:
            slots: of the supervisor that is at work.
            left: shots that are not finished; None before the first supervisor.
        """
        at = self._clock()
        # Slots with a gang, or that start one, unless it makes another campaign's shot.
        mine = [slot for slot in slots if slot.ranks and not slot.closed and self._may_be_mine(slot)]
        if exit_code is not None:
            mine = []
        counted = [slot for slot in mine if self._alone or slot.attempt is not None]
        self._gpu_seconds += (at - self._looked) * sum(slot.ranks for slot in counted)
        self._looked = at
        gangs = tuple(map(_gang, mine))
        self._device = next((gang.device for gang in gangs if gang.device), self._device)
        fraction = self._fraction(mine, self._cost.keys() if left is None else left)
        if self._working is None and any(gang.stage == "denoising" for gang in gangs):
            self._working = at, fraction
        summaries = [campaign.summary for campaign in self._campaigns]
        # A failed attempt loses steps, and a stopped one is not in a slot at the end.
        self._steps = max(self._steps, sum(one.steps for one in summaries) + sum(map(_steps, mine)))
        return replace(
            self._first, updated=now(), state=state if exit_code is None else "ended",
            rendered=sum(len(one.rendered) for one in summaries), encoded=sum(len(one.encoded) for one in summaries),
            failed=sum(len(one.failed) for one in summaries), retries=sum(one.retries for one in summaries),
            fraction=round(fraction, 4), seconds=round(at - self._began, 1),
            left_seconds=None if exit_code is not None else self._left(at, fraction),
            gpu_seconds=round(self._gpu_seconds, 1), device=self._device, gangs=gangs,
            failures=tuple(self._failures())[-MOST_FAILURES:], exit_code=exit_code,
            steps=self._steps, auditioned=sum(one.auditioned for one in summaries),
            not_chosen=self._first.not_chosen + sum(len(one.not_chosen) for one in summaries),
            withheld=sum(len(one.withheld) for one in summaries),
            ended=sum(len(one.not_chosen) + len(one.waiting) + len(one.withheld) for one in summaries),
            waiting=sum(len(one.waiting) for one in summaries), candidates=sum(one.candidates for one in summaries),
            below=sum(len(one.below) for one in summaries),
        )  # fmt: skip

    def _may_be_mine(self, slot: Slot) -> bool:
        return slot.attempt is None or any(slot.attempt.run.output is one.output for one in self._campaigns)

    def _failures(self) -> Iterator[FailedShot]:
        for campaign in self._campaigns:
            output = campaign.output
            shown = f"{campaign.title}: " if len(self._campaigns) > 1 else ""
            for name, reason in campaign.summary.failed[-MOST_FAILURES:]:
                logs = str(output.logs(name, 0).parent.relative_to(output.folder))
                yield FailedShot(f"{shown}{name}", reason, logs, campaign.summary.codes.get(name, ""))

    def _left(self, at: float, fraction: float) -> float | None:
        """Returns the seconds to the end, from the rate since the first shot began; None before anything is known."""
        if self._working is None:
            return None
        since, before = self._working
        if fraction - before < ENOUGH or fraction >= 1:
            return None
        return round((at - since) * (1 - fraction) / (fraction - before))

    def _fraction(self, slots: Sequence[Slot], unfinished: Iterable[ShotKey]) -> float:
        whole = self._whole_cost
        if not whole:
            return 1.0
        left = sum(self._cost.get(key, 0.0) for key in unfinished)
        begun = sum(
            self._cost.get((str(slot.attempt.run.output.folder), slot.attempt.item.shot.name), 0.0)
            * slot.seen.step / slot.seen.total
            for slot in slots
            if slot.attempt is not None and slot.seen is not None and slot.seen.total
            and slot.attempt.stage == "denoising"
        )  # fmt: skip
        return min(max(1 - (left - begun) / whole, 0.0), 1.0)


def unfinished(runs: InTurn) -> Iterator[ShotKey]:
    """Yields the shots of all supervisors that are not finished."""
    for supervisor in runs.supervisors:
        for work in (*supervisor.board.queue.left(), *supervisor.board.running):
            yield work.key


def _key(campaign: CampaignRun, item: Item) -> ShotKey:
    return str(campaign.output.folder), item.shot.name


def _steps(slot: Slot) -> int:
    """Returns the steps that this run has made of the shot that the gang of a slot denoises."""
    attempt, seen = slot.attempt, slot.seen
    if attempt is None or seen is None or attempt.stage != "denoising":
        return 0
    return max(seen.step - attempt.run.resumed.get(attempt.item.shot.name, 0), 0)


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
    if slot.gang is None or attempt is None or (attempt.stage == "encoding" and attempt.item.denoises):
        return status
    stage = attempt.stage
    if stage == "denoising" and seen.waits_for:
        stage = f"waiting for {seen.waits_for}"
    elif stage == "denoising" and 0 < seen.total <= seen.step:
        stage = "decoding"
    total = attempt.item.steps if attempt.item.denoises else 0
    return replace(
        status, stage=stage, shot=attempt.item.shot.name, step=seen.step if attempt.stage == "denoising" else 0,
        total=total, step_seconds=slot.step_seconds,
    )  # fmt: skip
