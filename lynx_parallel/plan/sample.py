"""Chooses a few shots that show most of a campaign. Imports neither torch nor Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lynx_parallel.plan.plan import Item


def choose_sample(items: Sequence[Item], count: int) -> list[Item]:
    """Returns at most ``count`` shots, spread over subjects, prompts and variants, in the order of the plan.

    One after another, it takes the shot whose subject, prompt and variant have been taken least often.
    """
    taken: Counter[tuple[str, str]] = Counter()
    left = list(enumerate(items))
    chosen: list[tuple[int, Item]] = []
    while left and len(chosen) < count:
        best = min(left, key=lambda one: (*sorted((taken[key] for key in _keys(one[1])), reverse=True), one[0]))
        left.remove(best)
        chosen.append(best)
        taken.update(_keys(best[1]))
    return [item for _, item in sorted(chosen, key=lambda one: one[0])]


def _keys(item: Item) -> list[tuple[str, str]]:
    shot = item.shot
    return [("subject", shot.subject.id), ("prompt", shot.prompt.id), ("variant", shot.variant)]
