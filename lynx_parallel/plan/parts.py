"""The parts of a campaign: the shots that one pipeline makes, with the files of that pipeline.

A campaign has several parts if some of its variants have a pipeline of their own. Imports neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property, partial

from lynx_parallel.errors import collect
from lynx_parallel.inputs.cluster import ClusterSpec
from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.inputs.weight_files import FaceFiles, WeightFiles
from lynx_parallel.output.folder import Output
from lynx_parallel.plan.auditions import with_auditions
from lynx_parallel.plan.changes import Change, find_changes
from lynx_parallel.plan.checks import check_work
from lynx_parallel.plan.plan import Item, Known, Plan, in_order, list_orphans, make_plan


@dataclass(frozen=True)
class Part:
    """The shots that one pipeline makes.

    Attributes:
        campaign: with this pipeline and its shots alone.
        digests: of the weights, by ``plan.hashing.weight_digests``.
        known: facts for the plan.
    """

    campaign: Campaign
    weights: WeightFiles
    face: FaceFiles | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    known: Known = field(default_factory=lambda: Known({}))

    @cached_property
    def variants(self) -> frozenset[str]:
        """Ids of its variants; the empty one in a manifest without variants."""
        return frozenset(shot.variant for shot in self.campaign.shots)

    def of(self, items: Iterable[Item]) -> list[Item]:
        """Returns those of the items that belong to this part."""
        return [item for item in items if item.shot.variant in self.variants]


def plan_parts(
    campaign: Campaign, parts: Sequence[Part], *, today: date, verify: bool = False, whole: bool = True
) -> Plan:
    """Compares a whole campaign with its output folder, as ``make_plan`` does for one pipeline."""
    items = {
        item.shot.name: item
        for part in parts
        for item in make_plan(part.campaign, part.known, today=today, verify=verify, whole=False).items
    }
    orphans = list_orphans(campaign) if whole else []
    ordered = [items[shot.name] for shot in in_order(campaign.shots)]
    return Plan(with_auditions(ordered, Output(campaign.output), campaign.quality), orphans)


def check_parts(parts: Sequence[Part], todo: Sequence[Item], cluster: ClusterSpec) -> None:
    """Refuses what would fail in every shot that is to be made, as ``check_work``, for all parts at once."""
    collect(partial(check_work, part.campaign, part.of(todo), part.weights, cluster, part.face) for part in parts)


def changes_of_parts(parts: Sequence[Part], items: Sequence[Item], set_: Sequence[str]) -> list[Change]:
    """Returns why finished shots would be made again, see ``find_changes``."""
    return [change for part in parts for change in find_changes(part.of(items), part.campaign, part.digests, set_)]
