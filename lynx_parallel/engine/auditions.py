"""Auditions in a run: takes wait until those they compete with have previews; then the chosen ones are finished."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lynx_parallel.engine.queue import Work
from lynx_parallel.output.scores import IdentityScore
from lynx_parallel.plan.auditions import shown_similarity, with_auditions
from lynx_parallel.plan.plan import Item

if TYPE_CHECKING:
    from lynx_parallel.engine.board import Board


class Auditions:
    """Decides the auditions of a run. ``plan.auditions`` has the rules."""

    def __init__(self, board: Board):
        self._board = board
        self._decided: set[tuple[str, tuple[str, str, str]]] = set()

    def previewed(self, work: Work, score: IdentityScore, attempt: int, seconds: float) -> None:
        """Records that a take's preview exists, and decides its audition if it was the last one.

        Args:
            seconds: of the attempt.
        """
        board, run, item = self._board, work.run, work.item
        run.journal.append(
            "auditioned", name=item.shot.name, attempt=attempt, seed=item.shot.seed, similarity=score.mean,
            seconds=round(seconds, 3),
        )  # fmt: skip
        run.summary.auditioned += 1
        name = run.shown(item.shot.name)
        run.say(f"{board.count()} {name}: auditioned in {seconds:.1f} s: {shown_similarity(score.mean)}")
        board.queue.hold(work)
        self.settle(work)

    def settle(self, work: Work) -> None:
        """Decides the audition of a take if no preview is missing any more. Failed takes leave the audition."""
        run, shot = work.run, work.item.shot
        key = str(run.output.folder), shot.takes_of
        if shot.audition is None or key in self._decided:
            return
        failed = {name for name, _ in (*run.summary.failed, *run.summary.withheld)}
        items = with_auditions(run.takes[shot.takes_of], run.output, run.campaign.quality, failed)
        if any(item.action == "audition" and item.shot.name not in failed for item in items):
            return
        self._decided.add(key)
        for item in items:
            held = self._board.queue.release((key[0], item.shot.name))
            if held is not None:
                self._apply(held, item)

    def _apply(self, work: Work, item: Item) -> None:
        board, run, name = self._board, work.run, item.shot.name
        if item.action == "render":
            work.item = item
            board.queue.retry(work)
        elif item.action == "not chosen":
            run.summary.not_chosen.append(name)
            run.journal.append("not chosen", name=name, reason=item.reason)
            run.say(f"{board.count()} {run.shown(name)}: not chosen: {item.reason}")
        else:
            run.summary.waiting.append(name)
            run.say(f"{board.count()} {run.shown(name)}: {item.reason}")
