"""What ``lynx-render plan`` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lynx_parallel.text import escaped

if TYPE_CHECKING:
    from lynx_parallel.plan.plan import Item

_ACTIONS = {"render": "to render", "encode": "to encode", "done": "done", "blocked": "blocked", "unknown": "unknown"}
MOST_NAMED = 3
"""Subjects that a line names if it stands for many."""


def by_subject(items: Sequence[Item]) -> Iterator[str]:
    """Yields lines with the counts and reasons of each subject. Subjects with the same counts share a line."""
    counts: dict[str, Counter[str]] = {}
    for item in items:
        counts.setdefault(item.shot.subject.id, Counter())[_kind(item)] += 1
    groups: dict[str, list[str]] = {}
    for subject, count in counts.items():
        groups.setdefault(", ".join(f"{number} {kind}" for kind, number in count.items()), []).append(subject)
    for text, subjects in groups.items():
        if len(subjects) <= MOST_NAMED:
            yield from (f"  {subject}: {text}" for subject in subjects)
        else:
            named = ", ".join(subjects[:MOST_NAMED])
            yield f"  {named} and {len(subjects) - MOST_NAMED} more: {text} each"


def _kind(item: Item) -> str:
    what = _ACTIONS[item.action]
    if item.reason:
        return f"{what} ({item.reason})"
    return f"{what} (new)" if item.action == "render" else what


def by_shot(items: Sequence[Item]) -> Iterator[str]:
    """Yields two lines for each shot: what is to be done and why, and its text."""
    for item in items:
        yield f"{item.action:8}{item.shot.name}{': ' * bool(item.reason)}{item.reason}"
        yield f"        {escaped(item.shot.text)}"
