"""What ``lynx-render plan`` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lynx_parallel.cli.finish import correlation_lines
from lynx_parallel.text import counted, escaped

if TYPE_CHECKING:
    from datetime import datetime

    from lynx_parallel.cli.load import Loaded
    from lynx_parallel.plan.forecast import Forecast
    from lynx_parallel.plan.parts import Part
    from lynx_parallel.plan.plan import Item, Plan

_ACTIONS = {"render": "to render", "encode": "to encode", "audition": "to audition"}
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
    what = _ACTIONS.get(item.action, item.action)
    if item.reason:
        return f"{what} ({item.reason})"
    return f"{what} (new)" if item.action == "render" else what


def by_shot(items: Sequence[Item]) -> Iterator[str]:
    """Yields two lines for each shot: what is to be done and why, and its text."""
    for item in items:
        yield f"{item.action + ' ':8}{item.shot.name}{': ' * bool(item.reason)}{item.reason}"
        yield f"        {escaped(item.shot.text)}"


def audition_lines(items: Sequence[Item]) -> Iterator[str]:
    """Yields the cost of each kind of audition, in whole renders."""
    takes_of = Counter(item.shot.takes_of for item in items)
    groups: dict[tuple[int, int, int, int], set[object]] = {}
    for item in items:
        if item.shot.audition is not None:
            audition, steps = item.shot.audition, item.shot.sampling.num_inference_steps
            key = takes_of[item.shot.takes_of], audition.keep, audition.step, steps
            groups.setdefault(key, set()).add(item.shot.takes_of)
    for (takes, keep, step, steps), shots in groups.items():
        cost = (takes * step + keep * (steps - step)) / steps
        yield (
            f"audition: {keep} of {takes} takes after step {step} of {steps} ({counted(len(shots), 'group')}): "
            f"{cost:.2f} renders each instead of {takes}"
        )


class Page:
    """What is shown of one campaign's plan.

    Args:
        set_: values of ``--set``.
        shots: whether each shot is shown, with its text.
    """

    def __init__(self, loaded: Loaded, planned: Plan, forecast: Forecast, set_: Sequence[str], *, shots: bool):
        from lynx_parallel.inputs.licences import licences
        from lynx_parallel.plan.parts import changes_of_parts

        self.forecast = forecast
        self._loaded = loaded
        self._planned = planned
        self._shots = shots
        self._changes = changes_of_parts(loaded.parts, planned.items, set_)
        self._missing: dict[str, Part] = {}
        for weight, part in loaded.missing:
            self._missing.setdefault(str(weight), part)  # several pipelines may need it
        self._licences = {
            name: text
            for part in loaded.parts
            for name, text in licences(part.campaign.pipeline, loaded.campaign.site.licence_of).items()
        }

    def as_json(self) -> dict[str, Any]:
        """Returns the plan for programs."""
        from lynx_parallel.inputs.notices import notices_as_json

        rows = [
            {"name": i.shot.name, "action": i.action, "reason": i.reason, "seed": i.shot.seed}
            | ({"text": i.shot.text, "negative_prompt": i.shot.sampling.negative_prompt} if self._shots else {})
            for i in self._planned.items
        ]
        campaign = self._loaded.campaign
        return {
            "output": str(campaign.output), "shots": rows, "orphans": list(self._planned.orphans),
            "warnings": notices_as_json(campaign.notices), "missing": list(self._missing),
            "changes": [change.as_json() for change in self._changes], "forecast": self.forecast.as_json(),
            "licences": self._licences, **({"site": str(campaign.site.path)} if campaign.site.path else {}),
        }  # fmt: skip

    def lines(self, now: datetime) -> Iterator[str]:
        """Yields the lines about the plan."""
        from lynx_parallel.cli.load import fetch_hint

        planned = self._planned
        yield f"{self._loaded.campaign.path.name}: {planned}"
        yield from self._loaded.lora_lines
        yield from (by_shot if self._shots else by_subject)(planned.items)
        yield from (f"orphan  {name}" for name in planned.orphans)
        yield from (f"{change}{'; render asks first' if change.causes else ''}" for change in self._changes)
        yield from (f"missing {name}: {fetch_hint(part.campaign)}" for name, part in self._missing.items())
        yield from self.forecast.lines(now)
        if any(item.shot.audition for item in planned.items):
            yield from audition_lines(planned.items)
            yield from correlation_lines(self._loaded.campaign)
        if (site := self._loaded.campaign.site).path is not None:
            yield f"site: {site.shown}: {site}"
        for text in dict.fromkeys(self._licences.values()):
            named = ", ".join(name for name, licence in self._licences.items() if licence == text)
            yield f"licence: {text}: {named}"
