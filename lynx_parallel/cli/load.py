"""Loads what render and plan work on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import partial
from typing import TYPE_CHECKING

from lynx_parallel.cli.options import Say

if TYPE_CHECKING:
    from lynx_parallel.plan import Plan
    from lynx_parallel.spec.manifest import Campaign
    from lynx_parallel.weights import FaceFiles, WeightFiles


def load(
    manifest: str, set_: list[str] | None, only: list[str] | None, verify: bool
) -> tuple[Campaign, WeightFiles, FaceFiles | None, dict[str, str], Callable[[], Plan]]:
    """The campaign, its weights and face models, their digests, and what compares it with the output folder."""
    from lynx_parallel.converted import with_converted
    from lynx_parallel.identity import needs_face_models
    from lynx_parallel.plan import make_plan
    from lynx_parallel.records import find_record
    from lynx_parallel.spec.load import load_campaign
    from lynx_parallel.weights import find_face_models, find_weights, not_cached, weight_digests

    campaign = load_campaign(manifest, set_ or (), only or ())
    for name in not_cached(campaign.pipeline.model):
        Say(sys.stderr)(f"{name}: downloading from the hub; lynx-render fetch shows progress and resumes")
    if record := find_record(manifest):
        campaign = replace(campaign, notices=(*campaign.notices, *record.changed_pictures()))
    weights = find_weights(campaign.pipeline.model)
    face = find_face_models(campaign.pipeline.face) if needs_face_models(campaign) else None
    digests = weight_digests(weights, face)
    weights = with_converted(weights, digests, campaign.pipeline.model.dtype)
    replan = partial(make_plan, campaign, digests, today=date.today(), verify=verify, whole=not only)
    return campaign, weights, face, digests, replan
