"""Starts the gang of a slot, and decides what follows a start that failed."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from lynx_parallel.engine.board import Board
from lynx_parallel.engine.gang import Gang
from lynx_parallel.engine.gang_sizes import span
from lynx_parallel.engine.periodic import PROGRESS_EVERY_S, report_every
from lynx_parallel.engine.placement import LOADING, STARTING, NoRoom, StartOptions, UnfitRank
from lynx_parallel.engine.policy import BACKOFF_S
from lynx_parallel.engine.queue import Slot, Work
from lynx_parallel.errors import ClusterError, LynxError, RenderError
from lynx_parallel.failures import SHARED_KINDS, remedy_for
from lynx_parallel.output.folder import Output
from lynx_parallel.rank.messages import RankConfig
from lynx_parallel.text import shown_size

_log = logging.getLogger(__name__)

RETRY_SOON_S = 0.1
"""Seconds before a start is repeated without the machine or GPU that was just left out."""
ROOM_AGAIN_S = 10.0
"""Seconds between two requests for room."""
MAX_STARTS = 4
"""Failed starts in a row after which a slot is given up."""
MAX_LOST = 30
"""Restart attempts for a gang after it lost its resources. Each waits up to two minutes for room."""

StartGang = Callable[[int, RankConfig, list[str], StartOptions, Output, Sequence[Path]], Awaitable[Gang]]


class GangStarter:
    """Starts gangs.

    Args:
        start: as ``start_gang``.
    """

    def __init__(self, board: Board, start: StartGang):
        self._board = board
        self._start_gang = start
        self._loading_reported = False

    async def start(self, slot: Slot, work: Work) -> LynxError | None:
        """Starts a slot's gang if it has none. Returns the error, or None."""
        board, sizes = self._board, self._board.sizes
        if slot.gang is not None:
            return None
        slot.ranks, slot.footprint, slot.denoise = sizes.size, sizes.footprint, board.denoise
        options = replace(
            board.machines.options, gangs=sizes.gangs, report=partial(self._report_step, slot), see=slot.see
        )
        if work.not_at and options.device == "cpu" and not any(other.gang for other in board.slots):
            # Otherwise the new gang would start where the shot has just failed.
            options = replace(options, excluded=options.excluded | {work.not_at})
        slot.doing = STARTING
        slot.begin(None)
        try:
            with report_every(PROGRESS_EVERY_S, partial(self._report_slow, slot)), board.texts.claimed() as prompts:
                slot.gang = await self._start_gang(
                    sizes.size, self._rank_config(), prompts, options, board.run.output, self._needed_files()
                )
        except LynxError as error:
            _log.debug("a gang could not be started: %s", error, exc_info=error)
            slot.end()
            return error
        slot.failed_starts = 0
        board.state.gang_started()
        board.machines.met(slot.gang.hellos)
        board.record(
            "gang_started", ranks=len(slot.gang.hellos), hosts=sorted({hello.host for hello in slot.gang.hellos}),
            device=slot.gang.hellos[0].device,
        )  # fmt: skip
        if line := span(slot.gang.hellos, slot.gang.breaks, board.run.layout_choice.asked):
            board.run.say(line)
        board.warn(f"{hello.host}: {line}" for hello in slot.gang.hellos for line in hello.warnings)
        return None

    async def after_failure(self, slot: Slot, error: LynxError) -> float | None:
        """Returns the seconds until the start is repeated, or None if the slot is given up.

        Raises:
            LynxError: the error, if it would end every start and no gang has started yet.
        """
        board = self._board
        known = len(board.machines.left_out)
        if await self._leave_out(error) and len(board.machines.left_out) > known:
            slot.failed_starts = 0
            board.report_left_out(str(error))
            return RETRY_SOON_S
        if not isinstance(error, NoRoom | UnfitRank | RenderError) and not board.state.began:
            raise error
        no_room = isinstance(error, NoRoom)
        if no_room and (board.machines.left_out or board.queue.elsewhere):
            board.machines.full = True
        slot.failed_starts = 0 if no_room and board.at_work else slot.failed_starts + 1
        if slot.failed_starts >= _most_starts(error, board.state.began and not board.machines.left_out):
            slot.error = error
            board.sizes.lose_gang()
            return None
        if getattr(error, "kind", None) == "memory" and slot.footprint == board.sizes.footprint:
            board.change_footprint(board.sizes.lighter())
        board.run.say(f"no ranks could be started: {str(error).rstrip('.')}; trying again")
        return ROOM_AGAIN_S if no_room else BACKOFF_S[min(slot.failed_starts, len(BACKOFF_S)) - 1]

    async def _leave_out(self, error: LynxError) -> bool:
        """Leaves out a machine or GPU on which starts fail. Returns whether it was left out."""
        machines = self._board.machines
        if isinstance(error, UnfitRank):
            return await machines.unfit(error.place, error.host, str(error))
        shared = isinstance(error, RenderError) and error.kind in SHARED_KINDS
        if not shared or not error.place or machines.ranks <= self._board.sizes.size:
            return False
        return await machines.unfit(error.place, error.host, f"{error.host}: {error}")

    def _report_step(self, slot: Slot, step: str) -> None:
        """Records the activity of a starting gang. The first gang reports its loading, which may take minutes."""
        slot.doing = step
        if step == LOADING and not self._loading_reported:
            self._loading_reported = True
            self._board.run.say(step)

    async def _report_slow(self, slot: Slot, seconds: float) -> None:
        seen = slot.seen
        read = ""
        if slot.doing == LOADING and seen is not None and seen.to_read:
            read = f", {shown_size(seen.read)} of {shown_size(seen.to_read)}"
        self._board.run.show_progress(f"still {slot.doing} after {seconds:.0f} s{read}")

    def _rank_config(self) -> RankConfig:
        board, run, footprint = self._board, self._board.run, self._board.sizes.footprint
        model, samplings = run.campaign.pipeline.model, [shot.sampling for shot in board.shots]
        left = [work.item for work in (*board.running, *board.queue.left()) if work.item.denoises]
        return RankConfig(
            run.weights, model.dtype, denoise=board.denoise, shard=footprint.shard, attention=run.cluster.attention,
            tiled_decode=footprint.tiled_decode, one_expert=footprint.one_expert, face=run.face,
            save_every=run.cluster.save_every, hung_after=run.cluster.hung_after, prompts=board.texts.files,
            vae_dtype=model.vae_dtype,
            video=run.campaign.pipeline.video,
            recognizers=board.recognizers, safety=run.campaign.site.safety,
            formats=tuple({(s.width, s.height, s.fps): None for s in samplings}),
            tasks=tuple({run.layout_choice.task(item.shot, footprint.ranks) for item in left}),
        )  # fmt: skip

    def _needed_files(self) -> list[Path]:
        """Returns files that every rank must see. A file that is missing here too fails its own shots only."""
        run, shot = self._board.run, self._board.shots[0]
        weights = run.weights
        files = [
            weights.base, weights.transformer, weights.transformer_2, weights.resampler, weights.id, weights.ref
        ]  # fmt: skip
        files += [*(lora.path for lora in weights.loras), shot.subject.image, shot.subject.embedding, shot.start_image]
        if run.face is not None:
            files += [run.face.detector, run.face.recognizer]
        files += [other.output.private for other in self._board.runs]
        return [path for path in files if path is not None and path.exists()]


def as_fault(error: LynxError) -> LynxError:
    """Returns the error that ends a run in which no gang could be started."""
    if not isinstance(error, RenderError):
        return error
    reason = str(error).rstrip(".")
    return ClusterError(f"no ranks could be started: {reason}. {remedy_for(reason, host='this machine')}")


def _most_starts(error: LynxError, began: bool) -> int:
    """Returns after how many failed starts in a row a slot is given up."""
    if isinstance(error, NoRoom):
        return MAX_LOST if began else MAX_STARTS
    return MAX_STARTS if began or isinstance(error, RenderError | UnfitRank) else 1
