"""Runs with random failures, in virtual time: nothing is lost, nothing is made twice."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lynx_parallel.inputs.cluster import ClusterSpec
from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import History
from tests.helpers.fake_gangs import OUTCOMES, World, supervise


@settings(
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(
    outcomes=st.lists(st.sampled_from(OUTCOMES), max_size=40),
    gangs=st.integers(1, 2),
    asked=st.sampled_from([None, 1, 2]),
    most=st.sampled_from([1, 3, 1000]),
    machines=st.sampled_from([("here",), ("here", "there")]),
    faults=st.dictionaries(st.sampled_from(["here", "there"]), st.sampled_from(["one", "another"])),
    one_expert=st.booleans(),
)
def test_nothing_is_lost_and_nothing_made_twice(
    campaign_of: Any,
    outcomes: list[str],
    gangs: int,
    asked: int | None,
    most: int,
    machines: tuple[str, ...],
    faults: dict[str, str],
    one_expert: bool,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        campaign = campaign_of(Path(folder))
        world = World(iter(outcomes), machines, faults, one_expert=one_expert)
        cluster = ClusterSpec(gangs=gangs, ulysses=asked, max_failures=most)
        summary, plan, error = supervise(campaign, world, cluster)

        names = [item.shot.name for item in plan.items]
        failed = [name for name, _ in summary.failed]
        if error:
            assert not summary.rendered + failed
        else:
            assert sorted(summary.rendered + failed) == sorted(names)  # each ends, and ends once
        assert world.ranks == 0  # no rank outlives its gang
        # Five, with as many footprints that need less; as many again where a machine was left out for the failures.
        assert max(world.attempts.values(), default=0) <= (5 + 3) * len(machines) * (1 + one_expert)
        output = Output(campaign.output)
        assert {name for name, _ in output.sidecars()} == set(summary.rendered)
        assert not list(Path(folder).rglob("*.part"))

        again = World(iter(()))  # all is well now
        rest, later, error = supervise(campaign, again, cluster)
        assert not error
        assert set(rest.rendered) == set(names) - set(summary.rendered)
        assert not rest.failed
        assert {item.shot.name for item in later.of("done")} == set(summary.rendered)
        assert set((world.made + again.made).values()) == {1}
        records = [json.loads(line) for line in output.journal.read_text().splitlines()]
        done = [record["video"] for record in records if record["event"] == "done"]
        assert len(done) == len(set(done)) == len(names)
        assert History.read(output.journal).done == {item.digests.video for item in plan.items}
