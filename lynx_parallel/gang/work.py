"""What gangs pull: shots to make, and the slots in which gangs make them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lynx_parallel.gang.policy import Kind
from lynx_parallel.parallel.layout import Layout
from lynx_parallel.plan import Item

if TYPE_CHECKING:
    from lynx_parallel.gang.gang import Gang


@dataclass
class Work:
    """A shot to make: its plan item, its place in the count, and how its attempts failed so far."""

    item: Item
    layout: Layout
    label: str
    history: list[Kind] = field(default_factory=list)
    not_before: float = 0.0


@dataclass
class Slot:
    """Room for one gang: the gang at hand, if any, and the subject whose conditioning it holds."""

    gang: Gang | None = None
    subject: str | None = None

    def end(self) -> None:
        """Ends the gang, every rank of it."""
        if self.gang is not None:
            self.gang.kill()
        self.gang = self.subject = None


def next_work(queue: list[Work], slot: Slot, taken: set[str | None], now: float) -> Work | None:
    """What a free gang pulls: highest priority first, then its own subject, then one no other gang holds.

    Args:
        taken: subjects that other gangs hold.
        now: monotonic seconds; retries wait for their time.
    """
    ready = [(place, work) for place, work in enumerate(queue) if work.not_before <= now]

    def rank(place: int, work: Work) -> tuple[int, bool, bool, int]:
        subject = work.item.shot.subject.id
        return -work.item.shot.priority, subject != slot.subject, subject in taken, place

    return min(ready, key=lambda entry: rank(*entry))[1] if ready else None
