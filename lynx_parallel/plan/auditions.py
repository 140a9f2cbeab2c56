"""Decides which takes of an audition are finished. Imports neither torch nor Ray.

All takes of a subject, prompt and variant run to an early step. Then the best ones, by their previews' scores or by a
person's choice, are finished. Everything follows from the records of the takes, so that any later run decides alike.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lynx_parallel.inputs.quality import Audition, Quality
from lynx_parallel.output.auditions import AuditionRecord, read_audition
from lynx_parallel.output.folder import Output
from lynx_parallel.plan.plan import Item

Verdict = Literal["chosen", "not chosen", "undecided"]


@dataclass(frozen=True)
class AuditionTake:
    """A take in its audition.

    Attributes:
        name: of the shot.
        number: of the take.
        has_preview: whether its preview exists.
        similarity: of its preview; None without a face, or before the preview exists.
        chosen: whether it is finished already, or a person accepted it.
        rejected: whether a person rejected it.
    """

    name: str
    number: int
    has_preview: bool
    similarity: float | None = None
    chosen: bool = False
    rejected: bool = False


def choose(takes: Sequence[AuditionTake], audition: Audition) -> dict[str, Verdict]:
    """Returns the verdict on each take, by name.

    Takes that are finished or accepted count first. By score, the others are decided once all previews exist: the
    highest similarity wins, a preview without a face comes last, and the lower number wins a tie. By a person, they
    are undecided until enough takes are accepted.
    """
    verdicts: dict[str, Verdict] = {one.name: "undecided" for one in takes}
    verdicts |= {one.name: "not chosen" for one in takes if one.rejected}
    verdicts |= {one.name: "chosen" for one in takes if one.chosen}
    free = [one for one in takes if verdicts[one.name] == "undecided"]
    places = audition.keep - sum(verdict == "chosen" for verdict in verdicts.values())
    if places > 0 and (audition.choose == "person" or not all(one.has_preview for one in free)):
        return verdicts
    best = sorted(free, key=lambda one: (one.similarity is None, -(one.similarity or 0.0), one.number))
    winners = {one.name for one in best[: max(places, 0)]}
    return verdicts | {one.name: "chosen" if one.name in winners else "not chosen" for one in free}


def with_auditions(
    items: Sequence[Item], output: Output, quality: Quality | None, failed: Collection[str] = ()
) -> list[Item]:
    """Returns the items with the actions that follow from the auditions of their takes.

    Args:
        items: of one campaign; those of a take's group must all be among them.
        failed: names of takes that failed in this run. They leave their group.
    """
    groups: dict[tuple[str, str, str], list[Item]] = {}
    for item in items:
        if item.shot.audition is not None and item.action in _IN_AUDITION and item.shot.name not in failed:
            groups.setdefault(item.shot.takes_of, []).append(item)
    found: dict[str, Item] = {}
    for group in groups.values():
        found |= _decided(group, output, quality)
    return [found.get(item.shot.name, item) for item in items]


_IN_AUDITION = ("render", "encode", "done", "audition", "auditioned", "not chosen")
"""Actions of takes that take part. Blocked ones, and those of which too little is known, do not."""


def _decided(group: Sequence[Item], output: Output, quality: Quality | None) -> dict[str, Item]:
    audition = group[0].shot.audition
    assert audition is not None
    records = {item.shot.name: _record(item, output, quality) for item in group}
    takes = [_take(item, records[item.shot.name]) for item in group]
    verdicts = choose(takes, audition)
    chosen = [records[name] for name, verdict in verdicts.items() if verdict == "chosen"]
    similarities = [record.similarity for record in chosen if record is not None]
    least = min((one for one in similarities if one is not None), default=None)
    return {
        item.shot.name: _item(item, records[item.shot.name], verdicts[item.shot.name], audition, len(group), least)
        for item in group
    }


def _record(item: Item, output: Output, quality: Quality | None) -> AuditionRecord | None:
    """Returns the audition of a take if it is of the current settings, step and recogniser."""
    audition = item.shot.audition
    record = read_audition(output.audition(item.shot.name), item.digests.resume)
    if record is None or audition is None or record.step < audition.step:
        return None
    return None if quality is not None and record.score.recognizer != quality.recognizer.name else record


def _take(item: Item, record: AuditionRecord | None) -> AuditionTake:
    shot = item.shot
    finished = item.action in ("done", "encode")
    return AuditionTake(
        shot.name, shot.take, record is not None, record.similarity if record else None,
        finished or shot.state == "accepted", shot.state == "rejected" and not finished,
    )  # fmt: skip


def _item(
    item: Item, record: AuditionRecord | None, verdict: Verdict, audition: Audition, takes: int, least: float | None
) -> Item:
    if item.action in ("done", "encode"):
        return item
    before = min(audition.step / item.shot.sampling.num_inference_steps, 1.0)
    shown = "" if record is None else f"{shown_similarity(record.similarity)} at step {record.step}"
    if verdict == "chosen":
        why = f"chosen: {shown}" if shown else item.reason
        return replace(item, action="render", reason=why, share=1.0 if record is None else 1 - before)
    if verdict == "not chosen":
        best = "" if least is None else f", the chosen ones have {least:.3f} or more"
        return replace(item, action="not chosen", reason=f"{shown or 'no preview'}{best}", share=0.0)
    expected = audition.keep / takes * (1 - before)
    if record is None:
        return replace(item, action="audition", share=before + expected)
    waits = "waits for a choice" if audition.choose == "person" else "waits for the other takes"
    return replace(item, action="auditioned", reason=f"{shown}, {waits}", share=expected)


def shown_similarity(similarity: float | None) -> str:
    """Returns a similarity as text."""
    return "no face" if similarity is None else f"identity {similarity:.3f}"


def takes_in_auditions(items: Sequence[Item]) -> dict[tuple[str, str, str], list[Item]]:
    """Returns the items that go through an audition together, by ``Shot.takes_of``."""
    found: dict[tuple[str, str, str], list[Item]] = {}
    for item in items:
        if item.shot.audition is not None:
            found.setdefault(item.shot.takes_of, []).append(item)
    return found
