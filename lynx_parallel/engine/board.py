"""The shared state of one run: shots, slots, machines, prompts, and phase."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from lynx_parallel.engine.gang_sizes import GangSizes
from lynx_parallel.engine.machines import HoldGpu, Machines
from lynx_parallel.engine.placement import StartOptions
from lynx_parallel.engine.policy import Footprint
from lynx_parallel.engine.prompt_texts import SharedTexts
from lynx_parallel.engine.queue import Queue, Slot, Work
from lynx_parallel.engine.run import Run
from lynx_parallel.engine.run_state import RunState
from lynx_parallel.errors import FAULT_CODE, NOT_TRIED_CODE
from lynx_parallel.inputs.manifest import Shot
from lynx_parallel.inputs.recognizers import Recognizer
from lynx_parallel.plan.digests import prompt_salt
from lynx_parallel.plan.plan import Item
from lynx_parallel.text import counted


class Board:
    """State that the supervisor, the starter of gangs and the outcomes share.

    Attributes:
        run: of the first campaign. It stands for all where they agree, such as for the weights.
        runs: one for each campaign.
        denoise: whether new gangs load the transformer. A shot whose latents are damaged needs it after all.
        running: shots that gangs make now.

    Args:
        todo: the runs, each with its shots.
        options: for starting gangs.
        hold: as ``placement.hold_gpu``.

    Raises:
        InputErrors, ClusterError: the options ask for more than the cluster can hold.
    """

    def __init__(self, todo: Sequence[tuple[Run, Sequence[Item]]], options: StartOptions, hold: HoldGpu):
        self.runs = [run for run, _ in todo]
        self.run = run = self.runs[0]
        works = [Work(item, of, first=item.shot.name in of.first) for of, items in todo for item in items]
        self.state = RunState(run.summaries)
        self.machines = Machines(options, hold)
        self.shots: list[Shot] = [work.item.shot for work in works]
        self.sizes = GangSizes(run.layout_choice, run.cluster, self.shots, options.device, self.machines.ranks)
        self.slots = [Slot() for _ in range(self.sizes.gangs)]
        self.denoise = any(work.item.action != "encode" for work in works)  # any gang may take a retry
        self.queue = Queue(work for work in works if work.item.action != "auditioned")
        for work in works:
            if work.item.action == "auditioned":
                self.queue.hold(work)
        self.running: set[Work] = set()
        prompts = run.output.prompts(prompt_salt(run.weight_digests, run.campaign.pipeline.model.dtype, options.device))
        self.texts = SharedTexts(prompts, self.shots if self.denoise else ())
        self._total = run.total or len(works)
        self._warned: set[str] = set()

    @property
    def recognizers(self) -> tuple[Recognizer, ...]:
        """Those that score the videos of the campaigns."""
        return tuple({run.recognizer: None for run in self.runs if run.recognizer is not None})

    @property
    def at_work(self) -> bool:
        """Whether any gang exists."""
        return any(slot.gang is not None for slot in self.slots)

    def is_open(self, slot: Slot) -> bool:
        """Returns whether a slot makes further shots."""
        if self.state.ends or slot.error is not None or slot.closed:
            return False
        # If gangs have become larger and fewer, slots without a gang close first.
        others = [other for other in self.slots if other.error is None and not other.closed]
        others.sort(key=lambda other: other.gang is None)
        surplus = others.index(slot) >= self.sizes.gangs
        return not surplus and bool(self.queue or self.running)

    def has_room(self, slot: Slot) -> bool:
        """Returns whether a slot has a gang, or room for one. After gangs have become larger, others must end first."""
        others = sum(other.ranks for other in self.slots if other is not slot)
        return slot.gang is not None or others + self.sizes.size <= self.sizes.most

    def others(self, slot: Slot) -> list[Slot]:
        """Returns the other open slots."""
        return [other for other in self.slots if other is not slot and self.is_open(other)]

    def count(self) -> str:
        """Returns the number of finished shots and of all shots, as lines of progress begin: ``[3/8]``."""
        return f"[{sum(summary.finished for summary in self.run.summaries)}/{self._total}]"

    def warn(self, lines: Iterable[str]) -> None:
        """Prints each warning once, also if several gangs or shots report it."""
        for line in dict.fromkeys(lines):
            if line not in self._warned:
                self.run.say(f"warning: {line}")
            self._warned.add(line)

    def fail(self, work: Work, reason: str, code: str = NOT_TRIED_CODE) -> None:
        """Records a failed shot. After ``--max-failures`` of them the run is given up."""
        run, name = work.run, work.item.shot.name
        run.summary.fail(name, reason, code)
        run.journal.append("failed", name=name, reason=reason, code=code)
        run.say(f"{run.shown(name)}: failed: {reason}")
        if self.failed >= run.cluster.max_failures:
            self.state.give_up(self.too_many_failed)

    @property
    def failed(self) -> int:
        """Number of failed shots of all campaigns."""
        return sum(len(summary.failed) for summary in self.run.summaries)

    @property
    def too_many_failed(self) -> str:
        """Why the other shots are not tried after ``--max-failures``."""
        return f"not tried: {counted(self.failed, 'shot')} failed"

    def record(self, event: str, **record: Any) -> None:
        """Adds a record to the journal of each campaign."""
        for run in self.runs:
            run.journal.append(event, **record)

    def end(self, fault: str) -> None:
        """Ends the run for a fault that every shot shares."""
        self.state.fault(fault)
        self.record("fault", reason=fault, code=FAULT_CODE)

    def report_left_out(self, reason: str) -> None:
        """Reports machines and GPUs that were left out since the last call. Ends the run if no gang can form."""
        run = self.run
        new = self.machines.left_out[len(run.summary.left_out) :]
        for summary in run.summaries:
            summary.left_out += new
        for line in new:
            self.record("left out", reason=line)
            run.say(f"left out of this run: {line}")
        self.sizes.shrink(self.machines.ranks)
        if self.sizes.gangs < 1:
            self.end(f"no gang of {self.sizes.size} can form without what was left out: {reason}")

    def change_footprint(self, footprint: Footprint) -> None:
        """Makes gangs take less memory. Each gang is replaced before it takes its next shot."""
        if self.sizes.take(footprint):
            self.run.say(f"out of memory: from now on with {footprint}")


def clock() -> float:
    """Returns the seconds of the running loop's clock."""
    return asyncio.get_running_loop().time()
