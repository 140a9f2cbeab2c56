"""Every shot is in exactly one shard, and the shards are equal in work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_parallel.inputs.quality import Audition
from lynx_parallel.output.shard import Shard
from lynx_parallel.plan.parts import Part
from lynx_parallel.plan.plan import Item, Plan, make_plan
from lynx_parallel.plan.shards import names_of_shard, part_of_plan, shots_digest
from lynx_parallel.plan.weights import find_weights
from tests.helpers.campaigns import MANIFEST, WEIGHTS, finish, load, write
from tests.helpers.planned import TODAY, parts_of


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    folder = tmp_path_factory.mktemp("shards")
    write(folder)
    points = "[[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]"
    given = f"{{image: ada.jpg, embedding: ada.npy, landmarks: {points}, vars: {{person: woman}}}}"
    subjects = "".join(f"  s{number:02}: {given}\n" for number in range(40))
    head, rest = MANIFEST.split("subjects:\n")
    campaign = load(folder, f"{head}subjects:\n{subjects}prompts:{rest.partition('prompts:')[2]}")
    return list(make_plan(campaign, WEIGHTS, today=TODAY).items)


@given(st.integers(1, 90), st.data())
def test_a_division(items: list[Item], count: int, data: st.DataObject) -> None:
    work = {item.shot.name: float(data.draw(st.integers(1, 9))) for item in items[:12]}
    work |= {item.shot.name: 1.0 for item in items[12:]}
    shards = [names_of_shard(items, work, Shard(number, count)) for number in range(1, count + 1)]
    assert sum(map(len, shards)) == len(items)
    assert set().union(*shards) == {item.shot.name for item in items}
    most = max(sum(work[name] for name in shard) for shard in shards)
    assert most <= sum(work.values()) / count + max(work.values())


@given(st.integers(2, 90))
def test_takes_of_an_audition_stay_together(items: list[Item], count: int) -> None:
    held = [replace(item, shot=replace(item.shot, audition=Audition(12))) for item in items]
    takes = [replace(item, shot=replace(item.shot, take=2, name=f"{item.shot.name}-2")) for item in held]
    both = [item for pair in zip(held, takes, strict=True) for item in pair]
    work = {item.shot.name: 1.0 for item in both}
    shards = [names_of_shard(both, work, Shard(number, count)) for number in range(1, count + 1)]
    assert sum(map(len, shards)) == len(both)
    for shard in shards:
        second = {name for name in shard if name.endswith("-2")}
        assert {f"{name}-2" for name in shard - second} == second


def test_a_subject_belongs_to_one_shard(items: list[Item]) -> None:
    work = {item.shot.name: 1.0 for item in items}
    for number in range(1, 9):
        mine = names_of_shard(items, work, Shard(number, 8))
        assert len({name.partition("/")[0] for name in mine}) == 5, "40 subjects, 8 shards"


def test_finished_shots_do_not_move_the_others(tmp_path: Path, demo: Path) -> None:
    write(tmp_path)
    campaign = load(tmp_path)
    parts: list[Part] = [replace(part, weights=find_weights(campaign.pipeline.model)) for part in parts_of(campaign)]

    def names() -> list[list[str]]:
        plan = make_plan(campaign, WEIGHTS, today=TODAY)
        actions.append({item.action for item in plan.items})
        each = [part_of_plan(plan, parts, Shard(number, 2)) for number in (1, 2)]
        assert [one.orphans for one in each] == [plan.orphans, []]
        return [[item.shot.name for item in one.items] for one in each]

    actions: list[set[str]] = []
    before = names()
    assert sorted(before[0] + before[1]) == sorted(shot.name for shot in campaign.shots)
    assert all(before)
    for shot in campaign.shots[:2]:
        finish(campaign, shot)
    (tmp_path / "out" / "gone.json").write_bytes((tmp_path / "out" / f"{campaign.shots[0].name}.json").read_bytes())
    assert names() == before
    campaign = load(tmp_path, f"{MANIFEST}video: {{crf: 30}}\n")
    assert names() == before
    assert actions == [{"render"}, {"render", "done"}, {"render", "encode"}]


def test_the_digest_is_that_of_the_shots(items: list[Item]) -> None:
    plan = Plan(items, [])
    assert shots_digest(plan.items) == shots_digest(reversed(list(plan.items)))
    assert shots_digest(plan.items) != shots_digest(plan.items[1:])
