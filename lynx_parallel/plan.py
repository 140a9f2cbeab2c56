"""What is left to do: campaign − what is done → Plan. Decides purely; nothing here writes.

Imports neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal, get_args

from lynx_parallel.identity import Identities, Identity, as_known, changed
from lynx_parallel.ledger import Output
from lynx_parallel.spec.manifest import Campaign, Shot
from lynx_parallel.words import counted

Action = Literal["done", "encode", "render", "blocked"]


@dataclass(frozen=True, slots=True)
class Item:
    """One shot and what is to be done for it.

    Attributes:
        action: ``done``: nothing; ``encode``: saved latents to mp4; ``render``: all of it;
            ``blocked``: not allowed, see ``reason``.
        reason: why, in words for the user; empty for a shot never made before.
        stale: old files with other or unknown settings exist, and are moved aside when the new ones are done.
    """

    shot: Shot
    identity: Identity
    action: Action
    reason: str = ""
    stale: bool = False


@dataclass(frozen=True)
class Plan:
    """All shots of a campaign, in the order in which they will be rendered.

    Attributes:
        orphans: names in the output folder that the manifest no longer has; listed, never touched.
    """

    items: Sequence[Item]
    orphans: Sequence[str]

    def __str__(self) -> str:
        """One line: how much there is to do."""
        count = {action: len(self.of(action)) for action in get_args(Action)}
        return (
            f"{counted(len(self.items), 'shot')}: {count['render']} to render, {count['encode']} to encode, "
            f"{count['done']} done, {count['blocked']} blocked"
        )

    def of(self, *actions: Action) -> list[Item]:
        """Items to be done in one of these ways, in order."""
        return [item for item in self.items if item.action in actions]


def make_plan(
    campaign: Campaign,
    weights: Mapping[str, str],
    *,
    today: date,
    verify: bool = False,
    whole: bool = True,
) -> Plan:
    """Compares a campaign with its output folder.

    Args:
        weights: digests by ``weights.weight_digests``.
        verify: read the content of finished files, not only their size and mtime.
        whole: False where ``campaign`` is a part of its manifest (``--only``); orphans are not told then.
    """
    output = Output(campaign.output)
    identities = Identities(campaign, weights)
    items = [_item(campaign, shot, identities.of(shot), output, today, verify) for shot in in_order(campaign.shots)]
    names = {shot.name for shot in campaign.shots}
    orphans = [name for name, _ in output.sidecars(but=names)] if whole else []
    return Plan(items, orphans)


def in_order(shots: Sequence[Shot]) -> list[Shot]:
    """Higher priority first, then subject by subject, so that conditioning is made once and reused."""
    first = {subject: index for index, subject in reversed(list(enumerate(shot.subject.id for shot in shots)))}
    return sorted(shots, key=lambda shot: (-shot.priority, first[shot.subject.id]))


def _item(campaign: Campaign, shot: Shot, identity: Identity, output: Output, today: date, verify: bool) -> Item:
    consent = shot.subject.consent
    if consent and consent.expires and consent.expires < today:
        return Item(shot, identity, "blocked", f"consent {consent.ref} expired on {consent.expires}")
    old = output.sidecar(shot.name)
    if old is None:
        unknown = output.has_files(shot.name)
        return Item(shot, identity, "render", "files without a readable sidecar" if unknown else "", stale=unknown)
    known = as_known(identity, old)
    if old["digests"]["latents"] != known.latents:
        return Item(shot, identity, "render", _changed(old["settings"], identity.settings), stale=True)

    has_latents = output.intact(shot.name, old, "latents", verify=verify)
    again: Action = "encode" if has_latents else "render"
    if old["digests"]["video"] != known.video:
        return Item(shot, identity, again, _changed(old["encoding"], identity.encoding), stale=True)
    # A damaged file may be one that somebody has worked on: it is moved aside as well.
    if campaign.save_latents and not has_latents:
        reason = "latents missing or damaged" if "latents" in old["outputs"] else "changed: save_latents"
        return Item(shot, identity, "render", reason, stale=True)
    if not output.intact(shot.name, old, "video", verify=verify):
        return Item(shot, identity, again, "video missing or damaged", stale=True)
    return Item(shot, known, "done")


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    return f"changed: {', '.join(changed(old, new)) or 'not known what'}"
