"""Plans of the small campaign."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.plan.parts import Part
from lynx_parallel.plan.plan import Known, Plan, make_plan
from tests.helpers.campaigns import WEIGHTS, tree

TODAY = date(2026, 7, 1)


ADA = "ada/walk-t01"


def parts_of(campaign: Campaign, digests: Mapping[str, str] = WEIGHTS) -> list[Part]:
    """The parts of a campaign, all with these digests, without files."""
    return [Part(part, None, None, digests, Known(digests)) for part in campaign.each]


def planned(campaign: Campaign, **options: Any) -> Plan:
    """The plan; making it must not write anything."""
    before = tree(campaign.path.parent)
    made = make_plan(campaign, options.pop("weights", WEIGHTS), today=options.pop("today", TODAY), **options)
    assert tree(campaign.path.parent) == before
    return made
