"""The supervisor: gangs pull shots until none is left. ``policy`` decides which failed shots are tried again."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from functools import partial

from lynx_parallel.engine.attempt import Attempt
from lynx_parallel.engine.board import Board, clock
from lynx_parallel.engine.faults import machine_of
from lynx_parallel.engine.gang_start import start_gang
from lynx_parallel.engine.machines import HoldGpu
from lynx_parallel.engine.outcomes import Outcomes
from lynx_parallel.engine.placement import NoRoom, StartOptions, hold_gpu
from lynx_parallel.engine.queue import Slot, Work
from lynx_parallel.engine.run import Run
from lynx_parallel.engine.starter import GangStarter, StartGang, as_fault
from lynx_parallel.engine.turns import Turns
from lynx_parallel.errors import FAULT_CODE, KIND_CODES, DamagedError, LynxError, RenderError, Stopped
from lynx_parallel.failures import code_of_reason
from lynx_parallel.plan.plan import Item
from lynx_parallel.text import counted

MOST_DECODED = 1
"""Shots of a gang that wait for their encoding or are encoded when it decodes another."""
IDLE_S = 0.1
"""Seconds until an idle slot looks for a shot again."""
STOP_WITHIN_S = 11.0
"""Seconds that the running shots have to save their states after the first SIGINT or SIGTERM."""


class Supervisor:
    """Makes the shots of campaigns that share their weights, out of one queue.

    Args:
        todo: the run of each campaign, with its shots to render or encode.
        options: for starting gangs.
        start: as ``start_gang``.
        hold: as ``placement.hold_gpu``.

    Raises:
        InputErrors, ClusterError: the options ask for more than the cluster can hold.
    """

    def __init__(
        self,
        todo: Sequence[tuple[Run, Sequence[Item]]],
        options: StartOptions,
        start: StartGang = start_gang,
        hold: HoldGpu = hold_gpu,
    ):
        self._board = Board(todo, options, hold)
        self._starter = GangStarter(self._board, start)
        self._outcomes = Outcomes(self._board)
        self._turns = Turns(self._board)

    async def make_all(self) -> None:
        """Returns when every shot is done or failed, or when the run ends early.

        Raises:
            LynxError: no gang could be started.
        """
        board = self._board
        board.run.say(f"starting {board.sizes}")
        servers = [asyncio.ensure_future(self._serve(slot)) for slot in board.slots]
        try:
            await asyncio.gather(*servers)
        finally:
            for server in servers:
                server.cancel()
            await asyncio.gather(*servers, return_exceptions=True)
        if board.state.stopped:
            return
        if board.run.summary.fault:
            self._record_untried(board.queue.left())
            return
        errors = [slot.error for slot in board.slots if slot.error is not None]
        if errors and not board.state.began:
            raise as_fault(errors[0])
        if errors and board.machines.left_out and board.queue:
            board.end(f"no gang can form without what was left out: {board.machines.left_out[-1]}")
            self._record_untried(board.queue.left())
            return
        reason = board.state.reason or next((f"no ranks could be started: {error}" for error in errors), "not tried")
        for work in board.queue.left() if board.queue else ():  # alone, those that wait for others stay for a later run
            board.fail(work, reason)

    @property
    def board(self) -> Board:
        return self._board

    @property
    def ended(self) -> bool:
        """Whether the run ended early, so that no further shot is to be tried."""
        return self._board.state.ends

    def report_pipeline(self) -> None:
        """Reports that the next pipeline's turn has come."""
        path = self._board.run.campaign.pipeline_path
        self._board.run.say(f"next pipeline: {path.stem}")

    def not_tried(self) -> None:
        """Records its shots after an earlier pipeline's run has ended early, unless they are left for the next run."""
        board = self._board
        if board.run.summary.fault:
            self._record_untried(board.queue.left())
        elif not board.state.stopped:
            reason = board.too_many_failed
            for work in board.queue.left():
                board.fail(work, reason)

    def _record_untried(self, works: Sequence[Work]) -> None:
        """Records the shots that were not tried. The fault is printed once, not for each of them."""
        for work in works:
            summary = work.run.summary
            summary.fail(work.item.shot.name, f"not tried: {summary.fault}", FAULT_CODE)
        if works:
            self._board.run.say(f"{counted(len(works), 'shot')} not tried")

    async def save_and_stop(self, work: asyncio.Future[None], within: float | None = STOP_WITHIN_S) -> None:
        """Makes the running shots save their resume states, then cancels ``work``.

        Args:
            work: the running ``make_all``.
            within: most seconds to wait; None waits until the current steps, or shots after their last step, end.
        """
        gangs = [slot.gang for slot in self._board.slots if slot.gang is not None]
        requests = asyncio.gather(*(gang.stop() for gang in gangs), return_exceptions=True)
        deadline = clock() + (math.inf if within is None else within)
        while self._board.at_work and clock() < deadline:
            await asyncio.sleep(IDLE_S)
        requests.cancel()
        work.cancel()
        await asyncio.gather(requests, return_exceptions=True)

    async def _serve(self, slot: Slot) -> None:
        """Makes one shot after another in one slot."""
        board = self._board
        try:
            while board.is_open(slot):
                excluded = {machine_of(place) for place in slot.places} & board.machines.options.excluded
                if slot.footprint != board.sizes.footprint or excluded or slot.denoise != board.denoise:
                    await slot.finished()
                    slot.end()
                if slot.gang is None:
                    self._turns.requeue(slot)
                work, attempt = self._turns.take(slot)
                if work is None:  # the other shots run elsewhere, or wait for their retry
                    self._settle_stranded()
                    await asyncio.sleep(IDLE_S)
                elif reason := self._outcomes.quarantined.get(work.subject):
                    board.running.discard(work)
                    self._outcomes.give_up(work, reason, KIND_CODES["subject"])
                else:
                    await self._make(slot, work, attempt)
            await slot.finished()
        finally:
            slot.closed = True
            self._turns.requeue(slot)
            for task in slot.finishing:
                task.cancel()
            await asyncio.gather(*slot.finishing, return_exceptions=True)
            slot.end()

    def _settle_stranded(self) -> None:
        """Settles the shots that were to be tried elsewhere, if no gang is left to do it."""
        board = self._board
        gangs = [slot.places for slot in board.slots if board.is_open(slot) and board.has_room(slot)]
        for work in board.queue.take_stranded(gangs):
            self._strand(work)

    def _strand(self, work: Work) -> None:
        """Fails a shot whose retries are spent. Any other shot is tried again where it failed."""
        if work.reason:
            self._outcomes.give_up(work, work.reason, code_of_reason(work.reason))
        else:
            work.not_at = ""
            self._board.queue.retry(work)

    async def _make(self, slot: Slot, work: Work, attempt: Attempt | None) -> None:
        """Tries one shot once. Starts a gang for it if the slot has none.

        Args:
            attempt: if the shot has been through the first of two experts.
        """
        board = self._board
        board.running.add(work)
        finishing = False
        try:
            slot.subject = work.subject
            error = await self._starter.start(slot, work)
            if error is None and not board.state.ends and work.not_at not in slot.places:
                finishing = await self._attempt(slot, work, attempt)
            elif work.not_at and isinstance(error, NoRoom):
                self._strand(work)  # there is no other place to try it
            else:
                board.queue.retry(work)  # another gang may take it
        finally:
            if not finishing:
                board.running.remove(work)
        if error is not None and (seconds := await self._starter.after_failure(slot, error)) is not None:
            await asyncio.sleep(seconds)

    async def _attempt(self, slot: Slot, work: Work, attempt: Attempt | None) -> bool:
        """Makes one attempt. Returns whether something is left to do for the shot after this call.

        It is then decoded and is encoded later, or it has been through the first of two experts.
        """
        gang = slot.gang
        assert gang is not None
        board, run, name = self._board, work.run, work.item.shot.name
        again = attempt is not None
        if attempt is None:
            if not self._outcomes.begin(work):
                return False
            number = run.output.next_attempt(name, len(work.history) + 1)
            attempt = Attempt(run, work.item, number, board.count, work.gate)
        item, number = work.item, attempt.number
        slot.begin(attempt)
        try:
            if not await self._texts_ready(slot, work):
                return False
            if not again:
                run.journal.append(
                    "attempt", name=name, subject=item.shot.subject.id, attempt=number, action=item.action,
                    latents=item.digests.latents,
                )  # fmt: skip
            layout = run.layout_choice.layout(item.shot, slot.footprint.ranks, gang.breaks)
            decoded = await attempt.make(
                gang, layout, slot.footprint, partial(self._prepared, slot, attempt), first_expert=not again
            )
        except Stopped as error:
            run.say(f"{board.count()} {run.shown(name)}: {error}")
            run.journal.append("stopped", name=name, attempt=number, reason=str(error))
            await slot.finished()
            slot.end()
            return False
        except (LynxError, OSError) as error:
            await slot.finished()  # rank 0 may still be encoding the shot before
            await self._outcomes.failed(slot, work, error, attempt)
            return False
        if item.action == "encode":
            await self._finish(slot, work, attempt)
            return False
        if not decoded:
            slot.halves.append((work, attempt))
            return True
        board.machines.succeeded(gang.hellos[: layout.size])
        slot.failure = slot.shun = ""
        await slot.finished(MOST_DECODED)
        slot.finishing.append(asyncio.ensure_future(self._finish_beside(slot, work, attempt)))
        return True

    async def _finish_beside(self, slot: Slot, work: Work, attempt: Attempt) -> None:
        """Finishes a decoded shot while the gang renders the next one."""
        try:
            await self._finish(slot, work, attempt)
        finally:
            self._board.running.remove(work)

    async def _finish(self, slot: Slot, work: Work, attempt: Attempt) -> None:
        """Encodes and publishes a shot, and settles its outcome."""
        try:
            rendered, seconds = await attempt.finish()
            self._outcomes.finished(work, rendered, attempt, seconds)
        except DamagedError as error:
            self._outcomes.render_again(work, attempt, error)
        except (LynxError, OSError) as error:
            await self._outcomes.failed(slot, work, error, attempt, decoded=attempt.item.denoises)

    def _prepared(self, slot: Slot, attempt: Attempt, done: int) -> None:
        slot.begin(attempt)
        attempt.say_resuming(done)
        self._turns.look_ahead(slot, self._outcomes.quarantined)

    async def _texts_ready(self, slot: Slot, work: Work) -> bool:
        """Waits until all prompts are encoded. Returns False if the shot was put back into the queue instead."""
        assert slot.gang is not None
        state = self._board.state
        try:
            await self._board.texts.ready(slot.gang, lambda: state.stopped)
        except RenderError as error:
            if error.kind != "memory":
                raise
            await slot.finished()
            # The text encoder does not fit beside the weights. A new gang encodes before it loads them.
            slot.end()
        if slot.gang is None or state.stopped:
            self._board.queue.retry(work)
            return False
        return True
