"""The queue of shots, and the slots in which gangs make them."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from lynx_parallel.engine.policy import Footprint
from lynx_parallel.errors import LynxError
from lynx_parallel.failures import Kind
from lynx_parallel.plan.plan import Item

if TYPE_CHECKING:
    from lynx_parallel.engine.attempt import Attempt
    from lynx_parallel.engine.gang import Gang
    from lynx_parallel.engine.gate import Gate
    from lynx_parallel.engine.run import Run
    from lynx_parallel.rank.messages import Progress


ShotKey = tuple[str, str]
"""Output folder and name of a shot. Shots of several campaigns may share a name."""


@dataclass(eq=False)
class Work:
    """A shot to make.

    Attributes:
        run: of its campaign and pipeline.
        history: how its attempts failed so far.
        not_before: earliest time of a retry, in seconds of the loop's clock.
        avoid: slot in which it failed. Another free slot takes the retry first.
        not_at: GPU or machine that must not try it again, because it may be at fault; see ``engine.faults``.
        reason: why it failed there, once its retries are spent.
        first: whether it belongs to the run's sample.
        gate: that its video must pass; None before its first attempt, or without a gate.
    """

    item: Item
    run: Run
    history: list[Kind] = field(default_factory=list)
    not_before: float = 0.0
    avoid: Slot | None = None
    not_at: str = ""
    reason: str = ""
    first: bool = False
    gate: Gate | None = None

    @property
    def priority(self) -> tuple[bool, int]:
        """Higher first: the sample before all others."""
        return self.first, self.item.shot.priority

    @property
    def subject(self) -> str:
        """Identifies the subject. Subjects of several campaigns may share an id."""
        return self.run.shown(self.item.shot.subject.id)

    @cached_property
    def key(self) -> ShotKey:
        return str(self.run.output.folder), self.item.shot.name


@dataclass(eq=False)
class Slot:
    """Room for one gang: the current gang, if any, and the subject whose conditioning it holds.

    Attributes:
        footprint: of the gang when it was started.
        ranks: of the current gang, or of the gang that starts.
        denoise: whether its gang can render, or only encode.
        failed_starts: number of failed starts in a row.
        error: why the slot was given up; None while it is used.
        failure: signature of the last failure; empty after a finished shot.
        shun: subject whose shots must not come next, because the subject may be at fault.
        closed: whether it takes no more shots.
        halves: shots that have been through the first of two experts, with their attempts, on a gang that holds one
            expert at a time.
        second_expert: whether it now takes these shots through the second one.
        finishing: shots that its gang has decoded, and that rank 0 encodes one after another.
        doing: activity of a starting gang, see ``placement``.
        attempt: that its gang makes now; None between two shots.
        seen: last progress of its gang with this shot, or with its loading.
        step_seconds: seconds of a step of this shot; None before the first.
    """

    gang: Gang | None = None
    subject: str | None = None
    footprint: Footprint = field(default_factory=Footprint)
    ranks: int = 0
    denoise: bool = True
    failed_starts: int = 0
    error: LynxError | None = None
    failure: str = ""
    shun: str = ""
    closed: bool = False
    halves: deque[tuple[Work, Attempt]] = field(default_factory=deque)
    second_expert: bool = False
    finishing: list[asyncio.Task[None]] = field(default_factory=list)
    doing: str = ""
    attempt: Attempt | None = None
    seen: Progress | None = None
    step_seconds: float | None = None
    _first: tuple[int, float] | None = None

    def begin(self, attempt: Attempt | None) -> None:
        """Forgets the progress of the shot before."""
        self.attempt, self.seen, self.step_seconds, self._first = attempt, None, None, None

    def see(self, progress: Progress) -> None:
        """Keeps the progress of its gang."""
        ended = time.monotonic() - progress.age  # of the last step
        self.seen = progress
        if self._first is None:
            self._first = progress.step, ended
        elif progress.step > self._first[0]:
            self.step_seconds = (ended - self._first[1]) / (progress.step - self._first[0])

    @property
    def places(self) -> frozenset[str]:
        """Where the gang's ranks run; empty without a gang."""
        return frozenset(hello.place for hello in self.gang.hellos) if self.gang is not None else frozenset()

    async def finished(self, most: int = 0) -> None:
        """Waits until at most ``most`` of its shots are not finished. Raises what their tasks raised."""
        while len(self.finishing) > most:
            await self.finishing[0]
            self._drop_finished()
        self._drop_finished()

    def _drop_finished(self) -> None:
        done = [task for task in self.finishing if task.done()]
        self.finishing = [task for task in self.finishing if not task.done()]
        for task in done:
            task.result()

    def end(self) -> None:
        """Kills all ranks of the gang."""
        if self.gang is not None:
            self.gang.kill()
        self.gang = self.subject = None
        self.ranks = 0
        self.begin(None)


class Queue:
    """Shots that gangs pull: highest priority first, then subject by subject, in the given order.

    The time of a pull does not grow with the length of the queue. Shots that wait for others are held and do not count.
    """

    def __init__(self, works: Iterable[Work] = ()):
        levels: dict[tuple[bool, int], OrderedDict[str, deque[Work]]] = {}
        self._retries: list[Work] = []
        self._held: dict[ShotKey, Work] = {}
        self._length = 0
        for work in works:
            level = levels.setdefault(work.priority, OrderedDict())
            level.setdefault(work.subject, deque()).append(work)
            self._length += 1
        self._levels = OrderedDict(sorted(levels.items(), reverse=True))

    def __len__(self) -> int:
        return self._length + len(self._retries)

    def retry(self, work: Work) -> None:
        """Puts a shot back whose attempt failed."""
        self._retries.append(work)

    def hold(self, work: Work) -> None:
        """Keeps a shot that waits for others and is not to be pulled."""
        self._held[work.key] = work

    def release(self, key: ShotKey) -> Work | None:
        """Removes and returns a shot that waits for others, or None if it does not."""
        return self._held.pop(key, None)

    def pull(self, slot: Slot, taken: Collection[str | None], now: float) -> Work | None:
        """Removes and returns the next shot for a free gang, or None if all remaining shots wait for their retry.

        Arguments and order as in ``peek``.
        """
        work = self.peek(slot, taken, now)
        if work is not None:
            self._remove(work)
        return work

    def peek(self, slot: Slot, taken: Collection[str | None], now: float) -> Work | None:
        """Returns what ``pull`` would return now, without removing it.

        Within one priority, a retry comes first, then a shot of the gang's own subject, then one of a subject that no
        other gang holds, then any other.

        Args:
            taken: subjects that other gangs hold.
            now: seconds of the loop's clock.
        """
        due = [w for w in self._retries if w.not_before <= now and w.not_at not in slot.places]
        welcome = [work for work in due if work.avoid is not slot]
        retry = max(welcome, key=lambda work: work.priority, default=None)
        top = next(iter(self._levels), None)
        if top is not None and (retry is None or top > retry.priority):
            return self._next_of(top, slot, taken)
        return retry or max(due, key=lambda work: work.priority, default=None)

    def _next_of(self, priority: tuple[bool, int], slot: Slot, taken: Collection[str | None]) -> Work:
        level = self._levels[priority]
        subject = slot.subject
        if subject not in level:
            others = (other for other in level if other != slot.shun)
            subject = next((other for other in others if other not in taken), None)
        if subject is None:
            subject = next((other for other in level if other != slot.shun), next(iter(level)))
        return level[subject][0]

    def _remove(self, work: Work) -> None:
        if work in self._retries:
            self._retries.remove(work)
            return
        priority, subject = work.priority, work.subject
        level = self._levels[priority]
        level[subject].popleft()
        self._length -= 1
        if not level[subject]:
            del level[subject]
        if not level:
            del self._levels[priority]

    @property
    def elsewhere(self) -> bool:
        """Whether a shot waits for another place than the one where it failed."""
        return any(work.not_at for work in self._retries)

    def take_stranded(self, gangs: Collection[Collection[str]]) -> list[Work]:
        """Removes and returns the shots that none of these gangs may try again.

        Args:
            gangs: places of each; empty for one that is yet to be started.
        """
        stranded = [work for work in self._retries if work.not_at and all(work.not_at in places for places in gangs)]
        self._retries = [work for work in self._retries if work not in stranded]
        return stranded

    def left(self) -> list[Work]:
        """Returns all shots that are not finished."""
        waiting = [work for level in self._levels.values() for works in level.values() for work in works]
        return [*self._retries, *waiting, *self._held.values()]
