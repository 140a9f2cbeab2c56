"""Divides a campaign into shards, in the same way on every machine. Imports neither torch nor Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from lynx_parallel.output.shard import Shard
from lynx_parallel.plan.parts import Part
from lynx_parallel.plan.plan import Item, Plan
from lynx_parallel.plan.work import costs


def part_of_plan(plan: Plan, parts: Sequence[Part], shard: Shard) -> Plan:
    """Returns the plan with the shots of one shard alone. The first shard also has the orphans.

    Every driver must get the same division, whatever is finished. So all shots of the manifest count as if they were
    to be rendered.
    """
    work = costs(parts, [replace(item, action="render", share=1.0) for item in plan.items])
    mine = names_of_shard(plan.items, work, shard)
    return Plan([item for item in plan.items if item.shot.name in mine], plan.orphans if shard.number == 1 else [])


def names_of_shard(items: Iterable[Item], work: Mapping[str, float], shard: Shard) -> set[str]:
    """Returns the names of the shots of one shard.

    The shots are put in order by subject, and the order is cut into pieces of equal work. So most subjects belong to
    one shard, which makes their conditioning once. Takes of one audition stay together.

    Args:
        items: of the whole manifest.
        work: of each shot, by name, in any unit.
    """
    subjects: dict[str, dict[object, list[str]]] = {}
    for item in items:
        shot = item.shot
        unit = shot.takes_of if shot.audition else shot.name
        subjects.setdefault(shot.subject.id, {}).setdefault(unit, []).append(shot.name)
    whole = sum(work.values())
    before, names = 0.0, set[str]()
    for together in (together for own in subjects.values() for together in own.values()):
        cost = sum(work[name] for name in together)
        if whole and int(shard.count * (before + cost / 2) / whole) == shard.number - 1:
            names.update(together)
        before += cost
    return names


def shots_digest(items: Iterable[Item]) -> str:
    """Returns a digest of the names of all shots. Drivers whose shards divide other shots have another one."""
    return hashlib.sha256(
        "\n".join(sorted(item.shot.name for item in items)).encode(errors="backslashreplace")
    ).hexdigest()
