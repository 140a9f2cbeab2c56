"""Several pipelines in turn, in virtual time: one summary, and an early end that later pipelines respect."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lynx_parallel.engine import parts
from lynx_parallel.engine.placement import Machine, StartOptions
from lynx_parallel.engine.run import Run
from lynx_parallel.engine.summary import Summary
from lynx_parallel.engine.supervisor import Supervisor
from lynx_parallel.inputs.cluster import ClusterSpec
from lynx_parallel.inputs.manifest import split
from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import Journal
from lynx_parallel.plan.layout_choice import LayoutChoice
from lynx_parallel.plan.parts import plan_parts
from lynx_parallel.plan.weights import find_weights
from tests.helpers.fake_gangs import RANKS, VirtualTime, World
from tests.helpers.planned import TODAY, parts_of


def in_turn(
    campaign: Any, world: World, monkeypatch: pytest.MonkeyPatch, cluster: ClusterSpec, stop_after: float | None = None
) -> tuple[Summary, list[str]]:
    """Runs the shots of subject a with one pipeline, then those of b with another."""
    lines: list[str] = []
    spec = campaign.pipeline
    other = spec.model_copy(update={"video": spec.video.model_copy(update={"crf": 30})})
    shots = tuple(replace(shot, variant=shot.subject.id) for shot in campaign.shots)
    campaign = replace(campaign, shots=shots)
    campaign = replace(campaign, parts=split(campaign, {"b": (Path("other.yaml"), other)}))
    output, summary, weights = Output(campaign.output), Summary(), find_weights(spec.model)
    journal = Journal(output.journal)
    found = parts_of(campaign, {})
    todo = plan_parts(campaign, found, today=TODAY).of("render")
    runs = [
        (
            Run(
                part.campaign, weights, None, {}, cluster, LayoutChoice(cluster, weights), output, journal, summary,
                lines.append, total=len(todo),
            ),
            part.of(todo),
        )
        for part in found
    ]  # fmt: skip
    monkeypatch.setattr(parts, "Supervisor", partial(Supervisor, start=world.start, hold=world.hold))

    async def go() -> None:
        made = parts.InTurn(parts.together(runs), StartOptions("cpu", True, (Machine("here", "127.0.0.1", RANKS),)))
        work = asyncio.ensure_future(made.make_all())
        if stop_after is not None:
            await asyncio.sleep(stop_after)
            summary.stopped_by = 15
            await made.save_and_stop(work)
        await asyncio.gather(work, return_exceptions=True)
        if not work.cancelled() and work.exception():
            raise work.exception()  # type: ignore[misc]

    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        runner.run(go())
    journal.close()
    return summary, lines


def test_one_after_the_other(campaign_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(iter(()))
    summary, lines = in_turn(campaign_of(tmp_path), world, monkeypatch, ClusterSpec(gangs=1))
    subjects = [name.partition("/")[0] for name in summary.rendered]
    assert subjects == ["b"] * 7 + ["a"] * 6  # b has a shot of higher priority
    assert world.starts == 2
    assert world.ranks == 0
    assert sum("next pipeline" in line for line in lines) == 1
    assert [int(n) for n in re.findall(r"\[(\d+)/13\] rendered", "\n".join(lines))] == list(range(1, 14))


def test_too_many_failures_end_all(campaign_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(iter(["done", *["raised"] * 4]))
    cluster = ClusterSpec(gangs=1, max_failures=1)
    summary, _ = in_turn(campaign_of(tmp_path), world, monkeypatch, cluster)
    assert len(summary.failed) == 13 - len(summary.rendered)
    assert {reason for name, reason in summary.failed if name.startswith("a/")} == {"not tried: 7 shots failed"}


def test_a_stop_leaves_the_next_pipeline(campaign_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(iter(()))
    summary, _ = in_turn(campaign_of(tmp_path), world, monkeypatch, ClusterSpec(gangs=1), stop_after=200)
    assert 0 < len(summary.rendered) < 7
    assert not summary.failed
    assert world.starts == 1
    assert world.ranks == 0
