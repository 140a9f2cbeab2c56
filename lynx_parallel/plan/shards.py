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
    work = costs(parts, [replace(item, action="render") for item in plan.items])
    mine = names_of_shard(plan.items, work, shard)
    return Plan([item for item in plan.items if item.shot.name in mine], plan.orphans if shard.number == 1 else [])


def names_of_shard(items: Iterable[Item], work: Mapping[str, float], shard: Shard) -> set[str]:
    """Returns the names of the shots of one shard.

    The shots are put in order by subject, and the order is cut into pieces of equal work. So most subjects belong to
    one shard, which makes their conditioning once.

    Args:
        items: of the whole manifest.
        work: of each shot, by name, in any unit.
    """
    subjects: dict[str, list[str]] = {}
    for item in items:
        subjects.setdefault(item.shot.subject.id, []).append(item.shot.name)
    whole = sum(work.values())
    before, names = 0.0, set[str]()
    for name in (name for own in subjects.values() for name in own):
        middle = before + work[name] / 2
        if whole and int(shard.count * middle / whole) == shard.number - 1:
            names.add(name)
        before += work[name]
    return names


def shots_digest(items: Iterable[Item]) -> str:
    """Returns a digest of the names of all shots. Drivers whose shards divide other shots have another one."""
    return hashlib.sha256(
        "\n".join(sorted(item.shot.name for item in items)).encode(errors="backslashreplace")
    ).hexdigest()
