"""The supervisor: gangs pull shots until none is left; what fails is tried again, as ``policy`` says."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from lynx_parallel.engine.attempt import PROGRESS_EVERY_S, Attempt, Run, next_attempt, report_every
from lynx_parallel.engine.faults import DRIVER, SHARED_KINDS, machine_of, signature, source_of
from lynx_parallel.engine.gang import Gang
from lynx_parallel.engine.machines import HoldGpu, Machines
from lynx_parallel.engine.placement import LOADING, STARTING, NoRoom, StartOptions, UnfitRank, hold_gpu
from lynx_parallel.engine.policy import BACKOFF_S, Footprint, GiveUp, Retry, decide
from lynx_parallel.engine.prompt_texts import SharedTexts
from lynx_parallel.engine.queue import Queue, Slot, Work
from lynx_parallel.engine.shape import Shape, span
from lynx_parallel.errors import ClusterError, DamagedError, LynxError, RenderError, Stopped, SubjectError
from lynx_parallel.failures import Kind, disk_is_full, remedy_for
from lynx_parallel.inputs.manifest import Shot
from lynx_parallel.output.folder import Output
from lynx_parallel.output.waiting import find_latents, forget_waiting
from lynx_parallel.plan.digests import prompt_salt
from lynx_parallel.plan.plan import Item
from lynx_parallel.rank.messages import RankConfig, Rendered
from lynx_parallel.text import counted, in_words, shown_path

IDLE_S = 0.1
ROOM_AGAIN_S = 10.0
MAX_STARTS = 4
MAX_LOST = 30
"""So often the last gang asks for the room it had, two minutes each time."""
STOP_WITHIN_S = 11.0
"""After a first SIGINT or SIGTERM, so long for the states of the shots at hand to be saved."""

StartGang = Callable[[int, RankConfig, list[str], StartOptions, Output, Sequence[Path]], Awaitable[Gang]]


class Supervisor:
    """Carries out the shots of one run.

    Args:
        terms: on which gangs are started.
        start: as ``Gang.start``.

    Raises:
        InputErrors, ClusterError: more asked for than the cluster can hold.
    """

    def __init__(
        self,
        run: Run,
        todo: Sequence[Item],
        terms: StartOptions,
        start: StartGang = Gang.start,
        hold: HoldGpu = hold_gpu,
    ):
        self.run = run
        self._machines = Machines(terms, hold)
        self._source = source_of(item.shot for item in todo)
        self._start_gang = start
        self._shots: list[Shot] = [item.shot for item in todo]
        self._shape = Shape(run.layout_choice, run.cluster, self._shots, terms.device, self._machines.ranks)
        self._slots = [Slot() for _ in range(self._shape.gangs)]
        self._denoise = any(item.action == "render" for item in todo)  # a retry may come to any gang
        self._queue = Queue(Work(item) for item in todo)
        self._total = len(todo)
        self._running: set[Work] = set()
        prompts = run.output.prompts(prompt_salt(run.weight_digests, run.campaign.pipeline.model.dtype, terms.device))
        self._texts = SharedTexts(prompts, self._shots if self._denoise else ())
        self._began = False
        self._loading = False
        self._over = ""
        self._quarantined: dict[str, str] = {}
        self._warned: set[str] = set()

    async def make_all(self) -> None:
        """Returns when every shot is done or failed, or the run is to end.

        Raises:
            LynxError: no gang could be started at all, or none could be by what all have in common.
        """
        self.run.say(f"starting {self._shape}")
        servers = [asyncio.ensure_future(self._serve(slot)) for slot in self._slots]
        try:
            await asyncio.gather(*servers)
        finally:
            for server in servers:
                server.cancel()
            await asyncio.gather(*servers, return_exceptions=True)
        if self._stopping:
            return
        if self.run.summary.fault:
            self._leave(self._queue.left())
            return
        reasons = [slot.error for slot in self._slots if slot.error is not None]
        if reasons and not self._began:
            raise _as_fault(reasons[0])
        if reasons and self._machines.left_out and self._queue:
            self._end(f"no gang can form without what was left out: {self._machines.left_out[-1]}")
            self._leave(self._queue.left())
            return
        reason = self._over or next((f"no ranks could be started: {error}" for error in reasons), "not tried")
        for work in self._queue.left():
            self._fail(work.item, reason)

    def _leave(self, works: Sequence[Work]) -> None:
        """Records the shots that were not tried. The fault is printed once, not for each of them."""
        self.run.summary.failed += [(work.item.shot.name, f"not tried: {self.run.summary.fault}") for work in works]
        if works:
            self.run.say(f"{counted(len(works), 'shot')} not tried")

    async def put_aside(self, work: asyncio.Future[None], within: float | None = STOP_WITHIN_S) -> None:
        """Has the shots at hand save their states, and ends ``work``, which is ``make_all`` at work.

        Args:
            within: seconds; None for as long as the steps at hand take, or a shot that has no more of them.
        """
        gangs = [slot.gang for slot in self._slots if slot.gang is not None]
        told = asyncio.gather(*(gang.stop() for gang in gangs), return_exceptions=True)
        deadline = _clock() + (math.inf if within is None else within)
        while self._at_work and _clock() < deadline:
            await asyncio.sleep(IDLE_S)
        told.cancel()
        work.cancel()
        await asyncio.gather(told, return_exceptions=True)

    @property
    def _at_work(self) -> bool:
        return any(slot.gang is not None for slot in self._slots)

    @property
    def _stopping(self) -> bool:
        return self.run.summary.stopped_by is not None

    async def _serve(self, slot: Slot) -> None:
        """Makes one shot after the other in one slot."""
        try:
            while self._open(slot):
                excluded = {machine_of(place) for place in slot.places} & self._machines.terms.excluded
                if slot.footprint != self._shape.footprint or excluded or slot.denoise != self._denoise:
                    slot.end()
                taken = {other.subject for other in self._slots if other is not slot}
                work = self._queue.pull(slot, taken, _clock()) if self._has_room(slot) else None
                if work is None:  # all that is left is running elsewhere, or waits for its retry
                    self._settle_stranded()
                    await asyncio.sleep(IDLE_S)
                elif reason := self._quarantined.get(work.subject):
                    self._fail(work.item, reason)
                else:
                    await self._make(slot, work)
        finally:
            slot.closed = True
            slot.end()

    def _settle_stranded(self) -> None:
        """Settles the shots that were to be tried elsewhere, if no gang is left to do it."""
        gangs = [slot.places for slot in self._slots if self._open(slot) and self._has_room(slot)]
        for work in self._queue.take_stranded(gangs):
            self._strand(work)

    def _strand(self, work: Work) -> None:
        """Fails a shot whose retries are spent; has any other tried again where it failed."""
        if work.reason:
            self._fail(work.item, work.reason)
        else:
            work.not_at = ""
            self._queue.retry(work)

    def _open(self, slot: Slot) -> bool:
        """Whether a slot goes on."""
        if self._stopping or self._over or self.run.summary.fault or slot.error is not None or slot.closed:
            return False
        # Of too many slots, those without a gang go first.
        others = [other for other in self._slots if other.error is None and not other.closed]
        others.sort(key=lambda other: other.gang is None)
        surplus = others.index(slot) >= self._shape.gangs  # gangs have become larger, and fewer
        return not surplus and bool(self._queue or self._running)

    def _has_room(self, slot: Slot) -> bool:
        """Whether a slot has a gang, or room for one: where gangs have become larger, others must end first."""
        others = sum(other.ranks for other in self._slots if other is not slot)
        return slot.gang is not None or others + self._shape.size <= self._shape.most

    async def _make(self, slot: Slot, work: Work) -> None:
        """Tries one shot once, by a gang that is started for it where there is none."""
        self._running.add(work)
        try:
            slot.subject = work.subject
            error = await self._start(slot, work)
            ends = self._stopping or self._over or self.run.summary.fault
            if error is None and not ends and work.not_at not in slot.places:
                await self._attempt(slot, work)
            elif work.not_at and isinstance(error, NoRoom):
                self._strand(work)  # there is no other place to try it
            else:
                self._queue.retry(work)  # another gang may take it meanwhile
        finally:
            self._running.remove(work)
        if error is not None and (seconds := await self._start_again(slot, error)) is not None:
            await asyncio.sleep(seconds)

    async def _start(self, slot: Slot, work: Work) -> LynxError | None:
        """Starts a slot's gang where there is none; what came in the way, if something did."""
        if slot.gang is not None:
            return None
        slot.ranks, slot.footprint, slot.denoise = self._shape.size, self._shape.footprint, self._denoise
        try:
            terms = replace(self._machines.terms, gangs=self._shape.gangs, tell=partial(self._doing, slot))
            if work.not_at and terms.device == "cpu" and not any(other.gang for other in self._slots):
                terms = replace(terms, excluded=terms.excluded | {work.not_at})  # else it would go there again
            slot.doing = STARTING
            with report_every(PROGRESS_EVERY_S, partial(self._still_starting, slot)), self._texts.claimed() as prompts:
                slot.gang = await self._start_gang(
                    self._shape.size, self._load(), prompts, terms, self.run.output, self._needed()
                )
        except LynxError as error:
            slot.end()
            return error
        slot.failed_starts = 0
        self._began = True
        self._machines.met(slot.gang.hellos)
        if line := span(slot.gang.hellos, slot.gang.breaks, self.run.layout_choice.asked):
            self.run.say(line)
        warnings = [f"warning: {hello.host}: {line}" for hello in slot.gang.hellos for line in hello.warnings]
        for warning in dict.fromkeys(line for line in warnings if line not in self._warned):
            self.run.say(warning)
        self._warned.update(warnings)
        return None

    def _doing(self, slot: Slot, what: str) -> None:
        """Records what a starting gang does. The first to load says so, since that may take minutes."""
        slot.doing = what
        if what == LOADING and not self._loading:
            self._loading = True
            self.run.say(what)

    async def _still_starting(self, slot: Slot, seconds: float) -> None:
        self.run.say(f"still {slot.doing} after {seconds:.0f} s")

    async def _start_again(self, slot: Slot, error: LynxError) -> float | None:
        """Seconds after which a gang that could not be started is tried again; None where the slot is given up.

        Raises:
            LynxError: what came in the way, where it would come in every gang's way and none was ever there.
        """
        known = len(self._machines.left_out)
        if await self._unfit(error) and len(self._machines.left_out) > known:
            slot.failed_starts = 0
            self._tell_left_out(str(error))
            return IDLE_S
        if not isinstance(error, NoRoom | UnfitRank | RenderError) and not self._began:
            raise error
        no_room = isinstance(error, NoRoom)
        if no_room and (self._machines.left_out or self._queue.elsewhere):
            self._machines.full = True
        slot.failed_starts = 0 if no_room and self._at_work else slot.failed_starts + 1
        if slot.failed_starts >= _starts(error, self._began and not self._machines.left_out):
            slot.error = error
            self._shape.lose_gang()
            return None
        if getattr(error, "kind", None) == "memory" and slot.footprint == self._shape.footprint:
            self._change(self._shape.lighter())
        self.run.say(f"no ranks could be started: {str(error).rstrip('.')}; trying again")
        return ROOM_AGAIN_S if no_room else BACKOFF_S[min(slot.failed_starts, len(BACKOFF_S)) - 1]

    async def _unfit(self, error: LynxError) -> bool:
        """Leaves out a place at which starts fail. Returns whether it was left out."""
        if isinstance(error, UnfitRank):
            return await self._machines.unfit(error.place, error.host, str(error))
        shared = isinstance(error, RenderError) and error.kind in SHARED_KINDS
        if not shared or not error.place or self._machines.ranks <= self._shape.size:
            return False
        return await self._machines.unfit(error.place, error.host, f"{error.host}: {error}")

    def _tell_left_out(self, reason: str) -> None:
        """Reports what was left out. Ends the run if no gang can form without it."""
        run = self.run
        new = self._machines.left_out[len(run.summary.left_out) :]
        run.summary.left_out += new
        for line in new:
            run.journal.append("left out", reason=line)
            run.say(f"left out of this run: {line}")
        self._shape.shrink(self._machines.ranks)
        if self._shape.gangs < 1:
            self._end(f"no gang of {self._shape.size} can form without what was left out: {reason}")

    def _end(self, fault: str) -> None:
        """Ends the run for a fault that every shot shares."""
        self.run.summary.fault = self.run.summary.fault or fault
        self.run.journal.append("fault", reason=fault)

    def _load(self) -> RankConfig:
        """What ranks load."""
        run = self.run
        left = [work.item for work in (*self._running, *self._queue.left()) if work.item.action == "render"]
        return RankConfig(
            run.weights, run.campaign.pipeline.model.dtype, denoise=self._denoise, shard=self._shape.footprint.shard,
            attention=run.cluster.attention, tiled_decode=self._shape.footprint.tiled_decode, face=run.face,
            save_every=run.cluster.save_every, hung_after=run.cluster.hung_after, prompts=self._texts.files,
            vae_dtype=run.campaign.pipeline.model.vae_dtype, video=run.campaign.pipeline.video,
            formats=tuple({(s.sampling.width, s.sampling.height, s.sampling.fps): None for s in self._shots}),
            tasks=tuple({run.layout_choice.task(item.shot, self._shape.footprint.ranks) for item in left}),
        )  # fmt: skip

    def _needed(self) -> list[Path]:
        """Files that every rank must see, whatever the shot."""
        run, subject = self.run, self._shots[0].subject
        # What is gone for this machine as well fails its own shots, not the gang.
        weights = run.weights
        files = [weights.base, weights.resampler, weights.id, weights.ref, subject.image, subject.embedding]
        if run.face is not None:
            files += [run.face.detector, run.face.recognizer]
        return [path for path in files if path is not None and path.exists()]

    async def _attempt(self, slot: Slot, work: Work) -> None:
        """Tries one shot once, and does what follows from how it went."""
        assert slot.gang is not None
        item, name, run = work.item, work.item.shot.name, self.run
        number = next_attempt(run.output, name, len(work.history) + 1)
        attempt = Attempt(run, item, number, self._count)
        try:
            if not await self._texts_ready(slot, work):
                return
            run.journal.append(
                "attempt", name=name, subject=item.shot.subject.id, attempt=number, action=item.action,
                latents=item.digests.latents,
            )  # fmt: skip
            layout = run.layout_choice.layout(item.shot, slot.footprint.ranks, slot.gang.breaks)
            made, seconds = await attempt.make(slot.gang, layout, slot.footprint)
        except Stopped as error:
            run.say(f"{self._count()} {name}: {error}")
            run.journal.append("stopped", name=name, attempt=number, reason=str(error))
            slot.end()
        except DamagedError as error:
            self._render_anew(work, attempt, error)
        except (LynxError, OSError) as error:
            await self._after_failure(slot, work, error, attempt)
        else:
            if item.action == "render":
                self._machines.succeeded(slot.gang.hellos[: layout.size])
            slot.failure = slot.shun = ""
            self._done(work, made, number, seconds)

    def _render_anew(self, work: Work, attempt: Attempt, error: DamagedError) -> None:
        """Has a shot rendered whose saved latents are damaged. Gangs that have only the VAE are started anew for it."""
        run, item = self.run, work.item
        line = str(error)
        try:
            line += f"; moved to {shown_path(attempt.set_latents_aside())}"
        except OSError as problem:
            line += f"; {in_words(problem)}"
        work.item = replace(item, action="render", latents=None, stale=run.output.has_files(item.shot.name))
        self._denoise = True
        self._texts.add([item.shot])
        self._queue.retry(work)
        run.journal.append("damaged", name=item.shot.name, attempt=attempt.number, reason=line)
        run.say(f"{self._count()} {item.shot.name}: {line}; to be rendered again")

    async def _texts_ready(self, slot: Slot, work: Work) -> bool:
        """Waits until all prompts are encoded. Returns False if the shot was put back instead."""
        assert slot.gang is not None
        try:
            await self._texts.ready(slot.gang, lambda: self._stopping)
        except RenderError as error:
            if error.kind != "memory":
                raise
            # The text encoder does not fit beside the weights. A new gang encodes before it loads them.
            slot.end()
        if slot.gang is None or self._stopping:
            self._queue.retry(work)
            return False
        return True

    async def _after_failure(self, slot: Slot, work: Work, error: LynxError | OSError, attempt: Attempt) -> None:
        """Has the policy decide, and does what it says."""
        run, kind = self.run, _kind(error)
        name = work.item.shot.name
        # Without a sidecar, old files are not there or are aside, and the attempt may have published its latents.
        published = run.output.sidecar(name) is None
        latents = find_latents(run.output, name, work.item.digests.latents_digests, published=published)
        if work.item.action == "render" and latents is not None:
            work.item = replace(work.item, action="encode", latents=latents)
        item = work.item
        cause = reason = in_words(error)
        work.history.append(kind)
        sharing = 1 if slot.gang is None or slot.gang.layout is None else slot.gang.layout.sequence
        if kind != "subject":
            reason = f"{reason} (logs: {shown_path(attempt.logs)})"
            slot.end()  # its other ranks may wait for the one that failed
        decision = decide(work.history, slot.footprint, ranks=sharing, most=self._shape.grows_to)
        at_once = False
        if kind in SHARED_KINDS:
            place = getattr(error, "place", DRIVER)
            decision, at_once = await self._blame(slot, work, place, cause, reason, decision)
        if isinstance(decision, GiveUp):
            if decision.quarantine:
                self._quarantined[work.subject] = reason
            if decision.stop:
                self._over = f"not tried: {reason}"
            self._fail(item, reason)
            return
        if slot.footprint == self._shape.footprint:  # or else another gang has changed it meanwhile
            self._change(decision.footprint)
        work.not_before, work.avoid = (0.0, None) if at_once else (_clock() + decision.delay_s, slot)
        self._queue.retry(work)
        run.summary.retries += 1
        run.journal.append("retry", name=item.shot.name, attempt=attempt.number, kind=kind, reason=reason)
        run.say(f"{self._count()} {item.shot.name}: {kind}, to be tried again: {reason}")

    async def _blame(
        self, slot: Slot, work: Work, place: str, cause: str, reason: str, decision: Retry | GiveUp
    ) -> tuple[Retry | GiveUp, bool]:
        """Decides whether the GPU, the machine, or something that all shots share is at fault.

        Returns:
            What to do with the shot, and whether to retry it at once, before other shots that might fail too.
        """
        shot, given_up = work.item.shot, isinstance(decision, GiveUp)
        slot.failure = signature(cause, shot.name)
        elsewhere = self._elsewhere(slot, place)
        verdict = await self._machines.failed(
            place, self._source(shot), slot.failure, cause, given_up=given_up, elsewhere=elsewhere
        )
        if verdict == "end":
            self._end(self._machines.explain(place, cause))
        elif verdict is not None:
            work.history.clear()  # the shot was not at fault in those attempts
            self._tell_left_out(cause)
            return Retry(0.0, self._shape.footprint), False
        elif given_up and elsewhere and place != DRIVER and not work.reason and not self._machines.proven(place):
            work.not_at, work.reason = place, reason
            return Retry(0.0, self._shape.footprint), False
        elif not given_up and any(place not in other.places for other in self._others(slot)):
            work.not_at = place  # a place that fails fast must not take all retries while the others work
        if given_up:
            slot.shun = work.subject
        return decision, not self._others(slot) and not elsewhere and not self._machines.proven(place)

    def _elsewhere(self, slot: Slot, place: str) -> bool:
        """Returns whether a shot may succeed elsewhere: other gangs, or room, do not show this slot's failure."""
        if self._machines.only(place):
            return False
        others = [other for other in self._others(slot) if place not in other.places]
        return self._machines.untried or any(other.failure != slot.failure for other in others)

    def _others(self, slot: Slot) -> list[Slot]:
        """Returns the other slots that go on."""
        return [other for other in self._slots if other is not slot and self._open(other)]

    def _change(self, footprint: Footprint) -> None:
        """Has gangs take less memory from now on: each is started anew, when it next comes to pull a shot."""
        if self._shape.take(footprint):
            self.run.say(f"out of memory: from now on with {footprint}")

    def _done(self, work: Work, made: Rendered, attempt: int, seconds: float) -> None:
        run, item, name = self.run, work.item, work.item.shot.name
        run.journal.append("done", name=name, attempt=attempt, video=item.digests.video, seconds=round(seconds, 3))
        with contextlib.suppress(OSError):  # the next run will
            forget_waiting(run.output, name)
            run.output.resume_state(item.digests.resume).unlink()
        rendered = item.action == "render"
        (run.summary.rendered if rendered else run.summary.encoded).append(name)
        run.summary.conditioning.update(made.conditioning)
        for warning in (f"warning: {line}" for line in made.warnings):
            if warning not in self._warned:  # several gangs, or several shots of a subject
                run.say(warning)
            self._warned.add(warning)
        verb = "rendered" if rendered else "encoded"
        run.say(f"{self._count()} {verb} in {seconds:.1f} s: {shown_path(run.output.path(name, 'video'))}")

    def _count(self) -> str:
        """Returns how many of the run's shots are finished, as lines of progress begin: ``[3/8]``."""
        return f"[{self.run.summary.finished}/{self._total}]"

    def _fail(self, item: Item, reason: str) -> None:
        run = self.run
        run.summary.failed.append((item.shot.name, reason))
        run.journal.append("failed", name=item.shot.name, reason=reason)
        run.say(f"{item.shot.name}: failed: {reason}")
        if len(run.summary.failed) >= run.cluster.max_failures and not self._over:
            self._over = f"not tried: {counted(len(run.summary.failed), 'shot')} failed"


def _as_fault(error: LynxError) -> LynxError:
    """Returns the error that ends a run in which no gang could be started."""
    if not isinstance(error, RenderError):
        return error
    reason = str(error).rstrip(".")
    return ClusterError(f"no ranks could be started: {reason}. {remedy_for(reason, host='this machine')}")


def _starts(error: LynxError, began: bool) -> int:
    """How often in a row a gang is started that fails with this."""
    if isinstance(error, NoRoom):
        return MAX_LOST if began else MAX_STARTS
    return MAX_STARTS if began or isinstance(error, RenderError | UnfitRank) else 1


def _kind(error: LynxError | OSError) -> Kind:
    if isinstance(error, SubjectError):
        return "subject"
    if isinstance(error, OSError):
        return "disk" if disk_is_full(error) else "raised"
    return getattr(error, "kind", "raised")


def _clock() -> float:
    return asyncio.get_running_loop().time()
