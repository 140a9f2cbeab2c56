"""What follows an attempt: the shot is done, tried again, rendered again, or failed, as the policy decides."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace

from lynx_parallel.engine.attempt import Attempt
from lynx_parallel.engine.auditions import Auditions
from lynx_parallel.engine.board import Board, clock
from lynx_parallel.engine.faults import DRIVER, source_of
from lynx_parallel.engine.gate import Gate, is_gated, record_kept
from lynx_parallel.engine.policy import GiveUp, Retry, decide
from lynx_parallel.engine.queue import Slot, Work
from lynx_parallel.errors import DamagedError, LynxError, WithheldError
from lynx_parallel.failures import SHARED_KINDS, Failure
from lynx_parallel.output.candidates import Candidate
from lynx_parallel.output.finished_latents import find_latents, remove_unpublished
from lynx_parallel.output.withheld import record_withheld
from lynx_parallel.plan.auditions import shown_similarity
from lynx_parallel.plan.plan import Item
from lynx_parallel.rank.messages import Rendered
from lynx_parallel.text import in_words, shown_path

_log = logging.getLogger(__name__)


class Outcomes:
    """Settles shots after their attempts.

    Attributes:
        quarantined: why a subject's shots are not tried, by ``Work.subject``.
        auditions: of the run.
    """

    def __init__(self, board: Board):
        self.quarantined: dict[str, str] = {}
        self._board = board
        self._source = source_of(board.shots)
        self.auditions = Auditions(board)

    def begin(self, work: Work) -> bool:
        """Chooses the attempt of a shot that must pass the gate. Returns False if nothing is left to render."""
        if work.gate is None and not is_gated(work.run.campaign, work.item):
            return True
        try:
            if work.gate is None:
                work.gate = Gate(work.run.campaign, work.run.output, work.item, work.run.weight_digests)
            following = work.gate.next()
            if isinstance(following, Item):
                work.item = following
                return True
            if following is None:
                self._end_withheld(work, "withheld by the safety checker in all attempts")
            else:
                self._keep(work, work.gate, following)
        except (LynxError, OSError) as error:
            failure = Failure.of(error, work.run.output.logs(work.item.shot.name, 0).parent)
            self.give_up(work, str(failure), failure.code)
        return False

    def finished(self, work: Work, rendered: Rendered, attempt: Attempt, seconds: float) -> None:
        """Records what an attempt has made, and what follows.

        Args:
            seconds: of the attempt.

        Raises:
            LynxError, OSError: as ``Gate.keep``.
        """
        if attempt.kept:
            self.done(work, rendered, attempt.number, seconds)
        elif work.item.action == "audition":
            assert rendered.score is not None
            self._board.warn(rendered.warnings)
            self.auditions.previewed(work, rendered.score, attempt.number, seconds)
        else:
            self._not_good_enough(work, rendered, attempt.number)

    def _not_good_enough(self, work: Work, rendered: Rendered, attempt: int) -> None:
        """Records a candidate. Then the shot is rendered with its next seed, or the best candidate becomes the shot."""
        board, run, item, gate = self._board, work.run, work.item, work.gate
        assert gate is not None
        assert rendered.score is not None
        quality, name, seed = gate.quality, item.shot.name, item.shot.seed
        run.journal.append(
            "candidate", name=name, attempt=attempt, seed=seed, recognizer=rendered.score.recognizer,
            similarity=rendered.score.mean,
        )  # fmt: skip
        self._remove_leftovers(work)
        run.summary.candidates += 1
        run.summary.conditioning.update(rendered.conditioning)
        board.warn(rendered.warnings)
        work.history.clear()
        following = gate.next()
        least = f"less than {quality.min_identity:g} by {quality.recognizer.name}"
        similarity = shown_similarity(rendered.score.mean)
        number = f"attempt {gate.number(seed)} of {quality.attempts}"
        then = "the best one is kept"
        if isinstance(following, Item):
            then = f"again with seed {following.shot.seed}"
            work.item = following
            board.queue.retry(work)
        run.say(f"{board.count()} {run.shown(name)}: {similarity}, {least} ({number}, seed {seed}); {then}")
        if isinstance(following, Candidate):
            self._keep(work, gate, following)

    def _withheld(self, work: Work, error: WithheldError, attempt: int) -> None:
        """Records a shot that the safety checker withheld. A shot with a gate is rendered with its next seed."""
        board, run, item = self._board, work.run, work.item
        safety = run.campaign.site.safety
        assert safety is not None
        record_withheld(run.output, item.shot.name, item.digests.latents, safety.digest, str(error))
        following = None if work.gate is None else work.gate.next()
        if isinstance(following, Item):
            run.journal.append("candidate withheld", name=item.shot.name, attempt=attempt, seed=item.shot.seed)
            run.say(f"{board.count()} {run.shown(item.shot.name)}: {error}; again with seed {following.shot.seed}")
            work.item = following
            work.history.clear()
            board.queue.retry(work)
        elif isinstance(following, Candidate) and work.gate is not None:
            self._keep(work, work.gate, following)
        else:
            self._end_withheld(work, str(error))

    def _end_withheld(self, work: Work, reason: str) -> None:
        run, name = work.run, work.item.shot.name
        run.summary.withheld.append((name, reason))
        run.journal.append("withheld", name=name, reason=reason, code=WithheldError.code)
        run.say(f"{self._board.count()} {run.shown(name)}: {reason}")
        self.auditions.settle(work)

    def _keep(self, work: Work, gate: Gate, best: Candidate) -> None:
        """Makes the best candidate the shot."""
        board, run, name = self._board, work.run, work.item.shot.name
        gate.keep(best)
        record_kept(run.journal, best)
        run.summary.rendered.append(name)
        if best.similarity is None or best.similarity < gate.quality.min_identity:
            run.summary.below.append((name, shown_similarity(best.similarity)))
        shown = shown_path(run.output.path(name, "video"))
        run.say(f"{board.count()} kept seed {best.seed}, {shown_similarity(best.similarity)}: {shown}")

    def _remove_leftovers(self, work: Work) -> None:
        """Removes the files that a finished video has made obsolete."""
        with contextlib.suppress(OSError):  # the next run removes them
            remove_unpublished(work.run.output, work.item.shot.name)
            work.run.output.resume_state(work.item.digests.resume).unlink()

    def done(self, work: Work, rendered: Rendered, attempt: int, seconds: float) -> None:
        """Records a finished shot.

        Args:
            seconds: of the attempt.
        """
        board, run = self._board, work.run
        item, name = work.item, work.item.shot.name
        run.journal.append(
            "done", name=name, attempt=attempt, video=item.digests.video, seconds=round(seconds, 3),
            stages=rendered.seconds,
        )  # fmt: skip
        self._remove_leftovers(work)
        denoised = item.action == "render"
        (run.summary.rendered if denoised else run.summary.encoded).append(name)
        run.summary.conditioning.update(rendered.conditioning)
        board.warn(rendered.warnings)
        verb = "rendered" if denoised else "encoded"
        run.say(f"{board.count()} {verb} in {seconds:.1f} s: {shown_path(run.output.path(name, 'video'))}")

    def render_again(self, work: Work, attempt: Attempt, error: DamagedError) -> None:
        """Queues a shot for rendering because its saved latents are damaged.

        A gang that has loaded only the VAE is then replaced.
        """
        board, run = self._board, work.run
        line, name = str(error), work.item.shot.name
        try:
            line += f"; moved to {shown_path(attempt.set_latents_aside())}"
        except OSError as problem:
            line += f"; {in_words(problem)}"
        work.item = replace(work.item, action="render", latents=None, stale=run.output.has_files(name))
        board.denoise = True
        board.texts.add([work.item.shot])
        board.queue.retry(work)
        run.journal.append("damaged", name=name, attempt=attempt.number, reason=line)
        run.say(f"{board.count()} {run.shown(name)}: {line}; to be rendered again")

    async def failed(
        self, slot: Slot, work: Work, error: LynxError | OSError, attempt: Attempt, *, decoded: bool = False
    ) -> None:
        """Asks the policy what follows a failed attempt, and does it.

        Args:
            decoded: the shot was decoded before, and its gang may be rendering another one.
        """
        if isinstance(error, WithheldError):
            self._withheld(work, error, attempt.number)
            return
        board, run, name = self._board, work.run, work.item.shot.name
        failure = Failure.of(error, attempt.logs)
        _log.debug("%s, attempt %d: %s", name, attempt.number, failure, exc_info=error)
        self._use_finished_latents(work)
        work.history.append(failure.kind)
        sharing = 1 if slot.gang is None or slot.gang.layout is None else slot.gang.layout.sequence
        if failure.kind != "subject" and not (decoded and failure.kind not in ("died", "hung")):
            slot.end()  # its other ranks may wait for the one that failed
        decision = decide(
            work.history, slot.footprint, ranks=sharing, most=board.sizes.grows_to, experts=board.sizes.experts
        )
        at_once = False
        if failure.kind in SHARED_KINDS:
            decision, at_once = await self._find_culprit(slot, work, failure, decision)
        if isinstance(decision, GiveUp):
            if decision.quarantine:
                self.quarantined[work.subject] = str(failure)
            if decision.stop:
                board.state.give_up(f"not tried: {failure}")
            self.give_up(work, str(failure), failure.code)
            return
        if slot.footprint == board.sizes.footprint:  # otherwise another gang has changed it already
            board.change_footprint(decision.footprint)
        work.not_before, work.avoid = (0.0, None) if at_once else (clock() + decision.delay_s, slot)
        board.queue.retry(work)
        run.summary.retries += 1
        run.journal.append("retry", name=name, attempt=attempt.number, kind=failure.kind, reason=str(failure))
        run.say(f"{board.count()} {run.shown(name)}: {failure.kind}, to be tried again: {failure}")

    def give_up(self, work: Work, reason: str, code: str) -> None:
        """Records a failed shot. An audition goes on without it."""
        self._board.fail(work, reason, code)
        self.auditions.settle(work)

    def _use_finished_latents(self, work: Work) -> None:
        """Makes the next attempt an encoding if the failed one has finished the latents."""
        output, name = work.run.output, work.item.shot.name
        # Without a sidecar, old files are missing or moved aside, and the attempt may have published its latents.
        published = output.sidecar(name) is None
        latents = find_latents(output, name, work.item.digests.latents_digests, published=published)
        if work.item.action == "render" and latents is not None:
            work.item = replace(work.item, action="encode", latents=latents)

    async def _find_culprit(
        self, slot: Slot, work: Work, failure: Failure, decision: Retry | GiveUp
    ) -> tuple[Retry | GiveUp, bool]:
        """Decides whether the GPU, the machine, or something that all shots share is at fault.

        Returns:
            What to do with the shot, and whether to retry it at once, before other shots that might fail too.
        """
        board, place = self._board, failure.place
        shot, given_up = work.item.shot, isinstance(decision, GiveUp)
        slot.failure = failure.signature(shot.name)
        elsewhere = self._may_succeed_elsewhere(slot, place)
        verdict = await board.machines.failed(
            place, self._source(shot), slot.failure, failure.reason, given_up=given_up, elsewhere=elsewhere
        )
        if verdict == "end":
            board.end(board.machines.explain(place, failure))
        elif verdict is not None:
            work.history.clear()  # the shot was not at fault in those attempts
            board.report_left_out(failure.reason)
            return Retry(0.0, board.sizes.footprint), False
        elif given_up and elsewhere and place != DRIVER and not work.reason and not board.machines.proven(place):
            work.not_at, work.reason = place, str(failure)
            return Retry(0.0, board.sizes.footprint), False
        elif not given_up and not board.machines.only(place) and any(place not in s.places for s in board.others(slot)):
            work.not_at = place  # a place that fails fast must not take all retries while the others work
        if given_up:
            slot.shun = work.subject
        return decision, not board.others(slot) and not elsewhere and not board.machines.proven(place)

    def _may_succeed_elsewhere(self, slot: Slot, place: str) -> bool:
        """Returns whether other gangs work without this slot's failure, or there is room that was never tried."""
        if self._board.machines.only(place):
            return False
        others = [other for other in self._board.others(slot) if place not in other.places]
        return self._board.machines.untried or any(other.failure != slot.failure for other in others)
