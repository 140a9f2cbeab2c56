"""Renders a sample of the shots before the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lynx_parallel.plan.parts import Part
from lynx_parallel.plan.plan import Item
from lynx_parallel.plan.sample import choose_sample


@dataclass(frozen=True)
class Sample:
    """A sample of the shots, to be looked at while the others are rendered.

    Attributes:
        count: number of shots.
        only: whether the run ends after them.
        ready: called once when all of them are finished, in a thread of its own.
    """

    count: int
    only: bool = False
    ready: Callable[[], None] = lambda: None

    def of(self, todo: Sequence[Item]) -> list[Item]:
        """Returns the shots of the sample."""
        return choose_sample(todo, self.count)


def turns(parts: Sequence[Part], todo: Sequence[Item], first: Sequence[Item]) -> list[tuple[Part, list[Item]]]:
    """Returns which part renders which shots, one turn after another: the sample of each part, then the others.

    The last turn of the sample and the first of the others are one turn of one part, so that its weights are loaded
    once.

    Args:
        first: the sample, out of ``todo``; may be empty.
    """
    names = {item.shot.name for item in first}
    others = [item for item in todo if item.shot.name not in names]
    samples = [(part, mine) for part in parts if (mine := part.of(first))]
    if not samples:
        return [(part, mine) for part in parts if (mine := part.of(others))]
    *before, (last, sample) = samples
    after = [(part, mine) for part in parts if part is not last and (mine := part.of(others))]
    return [*before, (last, [*sample, *last.of(others)]), *after]
