"""Loads a campaign for render and plan."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_parallel.errors import InputErrors, MissingWeights, collect
from lynx_parallel.view.lines import Lines

if TYPE_CHECKING:
    from lynx_parallel.inputs.manifest import Campaign
    from lynx_parallel.inputs.notices import Notice
    from lynx_parallel.plan.parts import Part
    from lynx_parallel.plan.plan import Plan
    from lynx_parallel.plan.present_weights import Missing


@dataclass(frozen=True)
class Loaded:
    """A campaign and what was found out about it before any work.

    Attributes:
        parts: one for each pipeline.
        missing: weights that are not on this machine, with the part that needs them; empty if they were downloaded.
        replan: compares the campaign with its output folder.
        lora_lines: what each LoRA changes.
    """

    campaign: Campaign
    parts: tuple[Part, ...]
    missing: tuple[tuple[Missing, Part], ...]
    replan: Callable[[], Plan]
    lora_lines: list[str]


def load(
    manifest: str, set_: list[str] | None, only: list[str] | None, verify: bool, *, download: bool = True
) -> Loaded:
    """Loads a campaign, finds its weights and checks its inputs.

    Args:
        download: whether weights that are missing are downloaded from the hub. False asks no network.

    Raises:
        InputErrors: all mistakes, one line each. Among them are embedding files that cannot be used, and weights that
            are missing and that nothing downloads.
    """
    from lynx_parallel.inputs.load import load_campaign
    from lynx_parallel.inputs.records import find_record
    from lynx_parallel.plan.parts import plan_parts

    campaign = load_campaign(manifest, set_ or (), only or ())
    found = [_load_part(part, download) for part in campaign.each]
    parts = tuple(one.part for one in found)
    record = find_record(manifest)
    of_record = record.changed_pictures() if record else ()
    notices = (*campaign.notices, *of_record, *(notice for one in found for notice in one.notices))
    campaign = replace(campaign, notices=tuple(dict.fromkeys(notices)))
    replan = partial(plan_parts, campaign, parts, today=date.today(), verify=verify, whole=not only)
    missing = [(part, one.part) for one in found for part in one.missing]
    return Loaded(campaign, parts, tuple(missing), replan, [line for one in found for line in one.lora_lines])


def plan_with_present(campaign: Campaign) -> Plan:
    """Compares a campaign with its output folder, by the weights on this machine. Asks no network.

    Raises:
        InputErrors: embedding files cannot be used, or weights are missing that nothing downloads.
    """
    from lynx_parallel.plan.parts import plan_parts

    parts = [_load_part(part, download=False).part for part in campaign.each]
    return plan_parts(campaign, parts, today=date.today(), whole=False)


def load_all(
    manifests: Sequence[str],
    set_: list[str] | None,
    only: list[str] | None,
    verify: bool,
    say: Lines,
    *,
    download: bool = True,
) -> list[Loaded]:
    """Loads several campaigns, as ``load`` does.

    Raises:
        InputErrors: the mistakes of all campaigns; or two of them have one output folder.
    """

    def load_one(manifest: str) -> Loaded:
        with say.if_slow(f"reading {manifest} and the weights"):
            return load(manifest, set_, only, verify, download=download)

    found = collect(partial(load_one, manifest) for manifest in manifests)
    lines: list[str] = []
    by_output: dict[Path, Campaign] = {}
    for campaign in (loaded.campaign for loaded in found):
        other = by_output.setdefault(Path(os.path.realpath(campaign.output)), campaign)
        if other is not campaign:
            lines.append(
                f"{campaign.path}: its output folder {campaign.output} is also that of {other.path}: "
                "give each an output folder of its own"
            )
    if lines:
        raise InputErrors(lines)
    return found


@dataclass(frozen=True)
class _Found:
    part: Part
    missing: tuple[Missing, ...]
    notices: tuple[Notice, ...]
    lora_lines: list[str]


def _load_part(campaign: Campaign, download: bool) -> _Found:
    """Finds the weights of one pipeline, and checks the inputs of its shots."""
    from lynx_parallel.inputs.base_configs import base_mistakes
    from lynx_parallel.inputs.weight_files import CONFIG_PATTERNS
    from lynx_parallel.plan.checks import (
        as_warnings,
        embedding_mistakes,
        long_texts,
        unreadable_pictures,
        video_notices,
    )
    from lynx_parallel.plan.converted import with_converted
    from lynx_parallel.plan.digests import needs_face_models
    from lynx_parallel.plan.hashing import weight_digests
    from lynx_parallel.plan.loras import lora_lines, lora_notices, read_loras
    from lynx_parallel.plan.parts import Part
    from lynx_parallel.plan.plan import Known
    from lynx_parallel.plan.present_weights import find_present
    from lynx_parallel.plan.start_images import check_starts
    from lynx_parallel.plan.weights import find_base, find_weights

    model = campaign.pipeline.model
    present = find_present(model, campaign.pipeline.face if needs_face_models(campaign) else None)
    mistakes, lacking = embedding_mistakes(campaign), _lines(present.missing, campaign, download)
    if mistakes or lacking:
        raise (InputErrors if mistakes else MissingWeights)([*mistakes, *lacking])
    weights, missing = present.weights, present.missing
    if download:
        for part in missing:
            Lines(sys.stderr)(f"{part.name}: downloading from the hub; lynx-render fetch shows progress and resumes")
            # Not 70 GB of a base that is refused afterwards.
            if part.name == model.base and (lines := base_mistakes(find_base(model.base, CONFIG_PATTERNS))):
                raise InputErrors(lines)
        weights, missing = find_weights(model), ()
    loras = [] if missing else read_loras(weights)
    digests = {} if missing else weight_digests(weights, present.face)
    unreadable, of_pictures = unreadable_pictures(campaign)
    starts, of_starts = check_starts(campaign)
    cuts, of_texts = long_texts(campaign, weights.base)
    notices = (*of_pictures, *of_starts, *of_texts, *lora_notices(loras), *video_notices(campaign))
    cut = as_warnings(cuts)
    known = Known(digests, all_weights=not missing, unreadable=unreadable, unreadable_starts=starts, cut=cut)
    if not missing:
        weights = with_converted(weights, digests, model.dtype)
    return _Found(Part(campaign, weights, present.face, digests, known), missing, notices, lora_lines(loras, weights))


def fetch_hint(campaign: Campaign) -> str:
    """Returns which command downloads the weights of a campaign's pipeline, in words."""
    from lynx_parallel.inputs.shipped import shipped_dir
    from lynx_parallel.text import shown_path

    path = campaign.pipeline_path
    name = path.stem if path.parent == shipped_dir("pipelines") else shown_path(path)
    return f"lynx-render fetch {name} downloads it"


def _lines(missing: tuple[Missing, ...], campaign: Campaign, download: bool) -> list[str]:
    """Returns a line for each part that will stay missing: render does not download what only fetch does."""
    lines = []
    for part in missing:
        if part.comes_by == "hand":
            lines.append(str(part))
        elif part.comes_by == "fetch" and download:
            lines.append(f"{part}: {fetch_hint(campaign)}, or name another place in the pipeline's face:")
    return lines
