"""Which shot a gang makes next."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import TYPE_CHECKING

from lynx_parallel.engine.board import Board, clock
from lynx_parallel.engine.queue import Slot, Work
from lynx_parallel.errors import LynxError

if TYPE_CHECKING:
    from lynx_parallel.engine.attempt import Attempt

PAIR = 2
"""Shots that go through one expert before they go through the other, if a gang holds one at a time."""


class Turns:
    """Takes shots from the queue for the gangs."""

    def __init__(self, board: Board):
        self._board = board

    def take(self, slot: Slot) -> tuple[Work | None, Attempt | None]:
        """Takes the next shot of a slot, with its attempt if it has been through the first of two experts.

        On a gang that holds one expert at a time, two shots go through the first expert, then through the other. So the
        experts are moved once for each shot instead of twice.
        """
        board = self._board
        work = None
        slot.second_expert = bool(slot.halves) and (slot.second_expert or len(slot.halves) == PAIR)
        if board.has_room(slot) and not slot.second_expert:
            work = board.queue.pull(slot, self._taken(slot), clock())
        if work is None and slot.halves:
            slot.second_expert = True
            return slot.halves.popleft()
        return work, None

    def requeue(self, slot: Slot) -> None:
        """Puts the half-made shots of a gang that has ended back into the queue. Their resume states are saved."""
        while slot.halves:
            work, _ = slot.halves.popleft()
            self._board.running.discard(work)
            self._board.queue.retry(work)

    def look_ahead(self, slot: Slot, quarantined: Collection[str]) -> None:
        """Has the face of the next shot's subject found while the current shot is denoised.

        Args:
            quarantined: subjects whose shots are not tried, as ``Work.subject``.
        """
        following = self._board.queue.peek(slot, self._taken(slot), clock())
        if following is None or not following.item.denoises or following.subject in (slot.subject, *quarantined):
            return
        if slot.gang is not None:
            shot = following.item.shot
            with contextlib.suppress(LynxError):  # unreadable files are reported when the shot is rendered
                slot.gang.prepare_ahead(shot, following.run.subject_key(shot, slot.gang))

    def _taken(self, slot: Slot) -> set[str | None]:
        return {other.subject for other in self._board.slots if other is not slot}
