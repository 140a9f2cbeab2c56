"""Loads a campaign for render and plan."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from typing import TYPE_CHECKING

from lynx_parallel.errors import InputErrors
from lynx_parallel.view.lines import Lines

if TYPE_CHECKING:
    from lynx_parallel.inputs.manifest import Campaign
    from lynx_parallel.inputs.weight_files import FaceFiles, WeightFiles
    from lynx_parallel.plan.plan import Plan
    from lynx_parallel.plan.present_weights import Missing


@dataclass(frozen=True)
class Loaded:
    """A campaign with its weights and digests.

    Attributes:
        campaign: its notices include those about pictures, texts and the video.
        weight_digests: of the weights and face models; empty if something is missing.
        missing: weights and face models that are not on this machine; always empty for render.
        replan: compares the campaign with the output folder as it is now.
        lora_lines: a line on each LoRA, for the user.
    """

    campaign: Campaign
    weights: WeightFiles
    face: FaceFiles | None
    weight_digests: dict[str, str]
    missing: tuple[Missing, ...]
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
    from lynx_parallel.inputs.base_configs import base_mistakes
    from lynx_parallel.inputs.load import load_campaign
    from lynx_parallel.inputs.records import find_record
    from lynx_parallel.inputs.weight_files import CONFIG_PATTERNS
    from lynx_parallel.plan.checks import (
        as_warnings,
        embedding_mistakes,
        long_texts,
        unreadable_pictures,
        unreadable_starts,
        video_notices,
    )
    from lynx_parallel.plan.converted import with_converted
    from lynx_parallel.plan.digests import needs_face_models
    from lynx_parallel.plan.hashing import weight_digests
    from lynx_parallel.plan.loras import lora_lines, lora_notices, read_loras
    from lynx_parallel.plan.plan import Known, make_plan
    from lynx_parallel.plan.present_weights import find_present
    from lynx_parallel.plan.weights import find_base, find_weights

    campaign = load_campaign(manifest, set_ or (), only or ())
    model = campaign.pipeline.model
    present = find_present(model, campaign.pipeline.face if needs_face_models(campaign) else None)
    if lines := [*embedding_mistakes(campaign), *_lines(present.missing, campaign, download)]:
        raise InputErrors(lines)
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
    starts, of_starts = unreadable_starts(campaign)
    cuts, of_texts = long_texts(campaign, weights.base)
    record = find_record(manifest)
    of_record = record.changed_pictures() if record else ()
    of_loras = lora_notices(loras)
    notices = (*campaign.notices, *of_record, *of_pictures, *of_starts, *of_texts, *of_loras, *video_notices(campaign))
    campaign = replace(campaign, notices=notices)
    known = Known(
        digests, all_weights=not missing, unreadable=unreadable, unreadable_starts=starts, cut=as_warnings(cuts)
    )
    replan = partial(make_plan, campaign, known, today=date.today(), verify=verify, whole=not only)
    if not missing:
        weights = with_converted(weights, digests, model.dtype)
    return Loaded(campaign, weights, present.face, digests, missing, replan, lora_lines(loras, weights))


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
