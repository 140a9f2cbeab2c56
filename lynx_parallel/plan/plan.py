"""Compares a campaign with its output folder, and returns the plan of what is left to do. Writes nothing.

Imports neither torch nor Ray.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal, get_args

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.manifest import Campaign, Shot
from lynx_parallel.output.finished_latents import find_latents
from lynx_parallel.output.folder import Output
from lynx_parallel.output.sidecar import SUFFIXES
from lynx_parallel.output.withheld import withheld_reason
from lynx_parallel.plan.attempts import attempt_shots
from lynx_parallel.plan.digests import (
    CampaignDigests,
    ShotDigests,
    as_in_sidecar,
    as_model_sees,
    changed,
    shot_digests,
)
from lynx_parallel.text import counted

_log = logging.getLogger(__name__)

_OF_WEIGHTS = ("weights", "face.detector", "face.recognizer")
"""Names that ``changed`` returns if weights differ."""

Action = Literal["done", "encode", "render", "audition", "auditioned", "not chosen", "blocked", "withheld", "unknown"]

TODO: tuple[Action, ...] = ("render", "encode", "audition", "auditioned")
"""Actions of shots that a run still has to do with. It only waits for other takes of those ``auditioned``."""
EXPECTED: tuple[Action, ...] = (*TODO, "unknown")
"""Actions of shots that count for a forecast."""


@dataclass(frozen=True, slots=True)
class Item:
    """One shot, and the action for it.

    Attributes:
        action: ``done``: nothing; ``encode``: saved latents to mp4; ``render``: all of it; ``audition``: the first
            steps, for a preview; ``auditioned``: nothing until other takes or a person decide; ``not chosen``: nothing;
            ``blocked``: not allowed or not possible, see ``reason``; ``withheld``: by the safety
            checker; ``unknown``: weights are not on this machine, so
            that only their digests could tell.
        reason: why, in words for the user; empty for a shot never made before.
        stale: old files with other or unknown settings exist, and are moved aside when the new ones are done.
        latents: finished latents to encode that no sidecar lists; None for those of the shot's sidecar.
        warnings: for the sidecar: parts of the texts that the model does not see.
        share: part of the shot's work that is expected, less than 1 in and after an audition.
    """

    shot: Shot
    digests: ShotDigests
    action: Action
    reason: str = ""
    stale: bool = False
    latents: Path | None = None
    warnings: tuple[str, ...] = ()
    share: float = 1.0

    @property
    def denoises(self) -> bool:
        """Whether the transformer is needed."""
        return self.action in ("render", "audition")

    @property
    def steps(self) -> int:
        """Number of denoising steps after which the action ends."""
        audition = self.shot.audition if self.action == "audition" else None
        return self.shot.sampling.num_inference_steps if audition is None else audition.step


@dataclass(frozen=True)
class Known:
    """Facts about a campaign's inputs, found before it is compared with the output folder.

    Attributes:
        weights: digests by ``weights.weight_digests``.
        all_weights: False if some weights are not on this machine; their digests are missing then.
        unreadable: the fault of a subject's picture, by the subject's id.
        unreadable_starts: the fault of a ``start_image``, by its path.
        cut: the part that the model does not see, by text.
    """

    weights: Mapping[str, str]
    all_weights: bool = True
    unreadable: Mapping[str, str] = field(default_factory=dict)
    unreadable_starts: Mapping[Path, str] = field(default_factory=dict)
    cut: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """All shots of a campaign, in the order in which they will be rendered.

    Attributes:
        orphans: names in the output folder that the manifest no longer has; listed, never touched.
    """

    items: Sequence[Item]
    orphans: Sequence[str]

    def __str__(self) -> str:
        """Returns one line with the number of shots by action."""
        count = {action: len(self.of(action)) for action in get_args(Action)}
        audition = f"{count['audition']} to audition, " if count["audition"] else ""
        rare = ("auditioned", "not chosen", "withheld", "unknown")
        others = "".join(f", {count[action]} {action}" for action in rare if count[action])
        return (
            f"{counted(len(self.items), 'shot')}: {audition}{count['render']} to render, {count['encode']} to encode, "
            f"{count['done']} done, {count['blocked']} blocked{others}"
        )

    def of(self, *actions: Action) -> list[Item]:
        """Items to be done in one of these ways, in order."""
        return [item for item in self.items if item.action in actions]


def make_plan(
    campaign: Campaign,
    known: Known | Mapping[str, str],
    *,
    today: date,
    verify: bool = False,
    whole: bool = True,
) -> Plan:
    """Compares a campaign with its output folder.

    Args:
        known: digests by ``weights.weight_digests``, alone or with what else was found out.
        verify: read the content of finished files, not only their size and mtime.
        whole: False if ``campaign`` is a part of its manifest (``--only``). Orphans are then unknown.

    Raises:
        InputErrors: pictures or embeddings that cannot be read, one line each.
    """
    known = known if isinstance(known, Known) else Known(known)
    output = Output(campaign.output)
    shots = in_order(campaign.shots)
    all_digests = _all_digests(campaign, shots, known)
    items = [
        _item(campaign, shot, digests, output, known, today, verify)
        for shot, digests in zip(shots, all_digests, strict=True)
    ]
    _log.debug("compared %d shots with %s", len(items), campaign.output)
    return Plan(items, list_orphans(campaign) if whole else [])


def list_orphans(campaign: Campaign) -> list[str]:
    """Returns the names in the output folder that the manifest no longer has."""
    names = {shot.name for shot in campaign.shots}
    return [name for name, _ in Output(campaign.output).sidecars(but=names)]


def _all_digests(campaign: Campaign, shots: Sequence[Shot], known: Known) -> list[ShotDigests]:
    """Returns the digests of each shot, or raises one InputErrors for all subjects whose files cannot be read."""
    all_digests, lines = CampaignDigests(campaign, known.weights), dict[str, None]()
    digests = []
    for shot in shots:
        try:
            digests.append(all_digests.of(shot))
        except InputErrors as error:
            lines.update(dict.fromkeys(error.lines))
    if lines:
        raise InputErrors(lines)
    return digests


def in_order(shots: Sequence[Shot]) -> list[Shot]:
    """Sorts by priority, then subject by subject, so that conditioning is made once and reused."""
    first = {subject: index for index, subject in reversed(list(enumerate(shot.subject.id for shot in shots)))}
    return sorted(shots, key=lambda shot: (-shot.priority, first[shot.subject.id]))


def _item(
    campaign: Campaign, shot: Shot, digests: ShotDigests, output: Output, known: Known, today: date, verify: bool
) -> Item:
    consent = shot.subject.consent
    if consent and consent.expires and consent.expires < today:
        return Item(shot, digests, "blocked", f"consent {consent.ref} expired on {consent.expires}")
    if lacking := campaign.site.lacks_consent(consent):
        return Item(shot, digests, "blocked", f"subject {shot.subject.id}: {lacking}")
    item = (_compared if known.all_weights else _without_weights)(campaign, shot, digests, output, verify)
    if item.action in ("render", "encode") and (why := _withheld(campaign, shot, digests, output, known)):
        return Item(shot, digests, "withheld", why)
    if item.action in ("render", "unknown") and (wrong := known.unreadable.get(shot.subject.id)):
        return Item(shot, digests, "blocked", wrong)
    start = shot.start_image
    if item.action in ("render", "unknown") and start is not None and start in known.unreadable_starts:
        return Item(shot, digests, "blocked", known.unreadable_starts[start])
    if known.cut and item.action != "done":
        texts = (("prompt", shot.text), ("negative prompt", shot.sampling.negative_prompt))
        warnings = tuple(f"{what}: {known.cut[text]}" for what, text in texts if text in known.cut)
        return replace(item, warnings=warnings) if warnings else item
    return item


def _withheld(campaign: Campaign, shot: Shot, digests: ShotDigests, output: Output, known: Known) -> str:
    """Returns why the safety checker withholds a shot, or an empty text. With a gate, it is so for all attempts."""
    safety = campaign.site.safety
    if safety is None or not (why := withheld_reason(output, digests.latents, lambda: safety.digest)):
        return ""
    for other in attempt_shots(campaign, shot)[1:]:
        latents = shot_digests(campaign, other, known.weights).latents
        if not withheld_reason(output, latents, lambda: safety.digest):
            return ""
    return why


def _without_weights(campaign: Campaign, shot: Shot, digests: ShotDigests, output: Output, verify: bool) -> Item:
    """Says of a shot what can be said without digests of the weights."""
    if (old := output.sidecar(shot.name)) is None:
        return Item(shot, digests, "unknown", "never finished")
    before, now = (
        as_model_sees({**old["settings"], **old["encoding"]}),
        as_model_sees({**digests.settings, **digests.encoding}),
    )
    names = changed(before, now)
    if differing := [name for name in names if name not in _OF_WEIGHTS]:
        return Item(shot, digests, "unknown", f"changed: {', '.join(differing)}", stale=True)
    kinds = ("latents", "video") if campaign.save_latents else ("video",)
    for kind in kinds:
        if not output.intact(shot.name, old, kind, verify=verify):
            reason = f"{kind} missing or damaged" if kind in old["outputs"] else "changed: save_latents"
            return Item(shot, digests, "unknown", reason, stale=True)
    return Item(shot, digests, "unknown", "finished; whether with these weights is not known")


def _compared(campaign: Campaign, shot: Shot, digests: ShotDigests, output: Output, verify: bool) -> Item:
    old = output.sidecar(shot.name)
    if old is None:
        return _without_sidecar(shot, digests, output)
    known = as_in_sidecar(digests, old)
    same_latents = old["digests"]["latents"] == known.latents
    has_latents = same_latents and output.intact(shot.name, old, "latents", verify=verify)
    reason = ""
    if not same_latents:
        reason = _changed(old["settings"], digests.settings)
    elif old["digests"]["video"] != known.video:
        reason = _changed(old["encoding"], digests.encoding)
    # A damaged file may be one that somebody has worked on: it is moved aside as well.
    elif campaign.save_latents and not has_latents:
        reason = "latents missing or damaged" if "latents" in old["outputs"] else "changed: save_latents"
    elif not output.intact(shot.name, old, "video", verify=verify):
        reason = "video missing or damaged"
    if not reason:
        return Item(shot, known, "done")
    latents = None if has_latents else find_latents(output, shot.name, digests.latents_digests, published=False)
    again: Action = "encode" if has_latents or latents else "render"
    return Item(shot, digests, again, reason, stale=True, latents=latents)


def _without_sidecar(shot: Shot, digests: ShotDigests, output: Output) -> Item:
    latents = find_latents(output, shot.name, digests.latents_digests, published=True)
    if latents is None:
        unknown = output.has_files(shot.name)
        return Item(shot, digests, "render", "files without a readable sidecar" if unknown else "", stale=unknown)
    others = [kind for kind in SUFFIXES if output.path(shot.name, kind) != latents]
    stale = any(os.path.lexists(output.path(shot.name, kind)) for kind in others)
    return Item(shot, digests, "encode", "its latents are finished, its video is not", stale=stale, latents=latents)


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    return f"changed: {', '.join(changed(old, new)) or 'not known what'}"
