"""The status of a run, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lynx_parallel.engine import parts
from lynx_parallel.engine.campaign_run import CampaignRun
from lynx_parallel.engine.monitor import Watcher
from lynx_parallel.engine.observer import Observer
from lynx_parallel.engine.placement import Machine, StartOptions
from lynx_parallel.engine.queue import Slot
from lynx_parallel.engine.run import Run
from lynx_parallel.engine.summary import Summary
from lynx_parallel.engine.supervisor import Supervisor
from lynx_parallel.inputs.cluster import ClusterSpec
from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import Journal
from lynx_parallel.output.run_status import RunStatus, read_status
from lynx_parallel.plan.layout_choice import LayoutChoice
from lynx_parallel.plan.parts import plan_parts
from lynx_parallel.plan.weights import find_weights
from lynx_parallel.rank.messages import Progress
from tests.helpers.fake_gangs import RANKS, VirtualTime, World
from tests.helpers.planned import TODAY, parts_of


def watched(
    campaign: Any,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    first: frozenset[str] = frozenset(),
    ready: Callable[[], None] | None = None,
) -> tuple[list[RunStatus], list[Mapping[str, Any]], Summary, Output]:
    """Runs all shots with one gang. Returns every status, every event, the result, and the output folder."""
    statuses: list[RunStatus] = []
    events: list[Mapping[str, Any]] = []
    weights = find_weights(campaign.pipeline.model)
    observer = Observer(lambda line: None, watch=statuses.append, event=events.append)
    each = [replace(part, weights=weights) for part in parts_of(campaign, {})]
    one = CampaignRun(campaign, each, partial(plan_parts, campaign, each, today=TODAY))
    one.look(observer)
    output, summary, todo = one.output, one.summary, one.todo
    one.first = [item for item in todo if item.shot.name in first]
    journal = Journal(output.journal, observer.event)
    cluster = ClusterSpec()
    run = Run(
        campaign, weights, None, {}, cluster, LayoutChoice(cluster, weights), output, journal, summary,
        lambda line: None, total=len(todo), first=first,
    )  # fmt: skip
    monkeypatch.setattr(parts, "Supervisor", partial(Supervisor, start=world.start, hold=world.hold))

    async def go() -> None:
        loop = asyncio.get_running_loop()
        watcher = Watcher([(one, todo)], observer, loop.time)
        if ready is not None:
            watcher.tell_when(ready)
        runs = parts.InTurn([[(run, todo)]], StartOptions("cpu", True, (Machine("here", "127.0.0.1", RANKS),)))
        following = asyncio.ensure_future(watcher.follow(runs))
        await runs.make_all()
        following.cancel()
        watcher.show(exit_code=summary.exit_code)

    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        runner.run(go())
    journal.close()
    return statuses, events, summary, output


def test_a_run_from_its_start_to_its_end(tmp_path: Path, campaign_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses, events, summary, output = watched(campaign_of(tmp_path / "out"), World(iter(())), monkeypatch)
    assert len(summary.rendered) == 13
    fractions = [status.fraction for status in statuses]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0.0
    assert statuses[0].gangs == () or statuses[0].gangs[0].stage != "denoising"
    assert any(gang.stage == "denoising" and gang.shot for status in statuses for gang in status.gangs)
    assert any(gang.finishing for status in statuses for gang in status.gangs), "one is encoded beside the next"
    last = statuses[-1]
    assert (last.state, last.exit_code, last.fraction, last.gangs, last.left_seconds) == ("ended", 0, 1.0, (), None)
    assert last.steps == 13 * 4
    assert (last.rendered, last.finished, last.to_make, last.total) == (13, 13, 13, 13)
    assert read_status(output.status) == last
    # One gang of two ranks is at work nearly all the time.
    assert last.gpu_seconds == pytest.approx(2 * last.seconds, rel=0.1)
    names = {event["event"] for event in events}
    assert {"attempt", "done", "gang_started", "status"} <= names
    assert sum(event["event"] == "done" for event in events) == 13
    assert all("stages" in event for event in events if event["event"] == "done")


def test_steps_of_earlier_runs_and_of_a_running_shot(
    tmp_path: Path, campaign_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of an earlier run do not count, nor do those that a failed shot has lost. The count never falls."""
    campaign = campaign_of(tmp_path / "out")
    first = campaign.shots[-1].name  # it has the highest priority
    begun = Slot.begin

    def begin(slot: Slot, attempt: Any) -> None:
        """As if the gang had made the first three of four steps at once."""
        begun(slot, attempt)
        if attempt is not None and attempt.stage == "denoising":
            slot.see(Progress(3, 4, 0.0))

    monkeypatch.setattr(Slot, "begin", begin)
    world = World(iter(["done", "subject"]), partial={first: 2})
    statuses, _, summary, _ = watched(campaign, world, monkeypatch)
    steps = [status.steps for status in statuses]
    assert steps == sorted(steps)
    assert len(summary.rendered) == 6  # subject b failed
    assert steps[5] == 1, "the third step of the first shot, of which an earlier run had made two"
    assert steps[-1] == summary.steps == 6 * 4


def test_the_time_left_is_right_within_a_shot(
    tmp_path: Path, campaign_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses, _, _, _ = watched(campaign_of(tmp_path / "out"), World(iter(())), monkeypatch)
    end = statuses[-1].seconds
    half = next(status for status in statuses if status.rendered == 7)
    assert half.left_seconds is not None
    assert half.left_seconds == pytest.approx(end - half.seconds, abs=120)
    assert statuses[0].left_seconds is None, "nothing is known before the first shot"


def test_failures_are_counted_and_listed(tmp_path: Path, campaign_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses, _, summary, _ = watched(campaign_of(tmp_path / "out"), World(iter(["done", "subject"])), monkeypatch)
    last = statuses[-1]
    assert last.failed == len(summary.failed) > 0
    assert last.failures[0].reason == "no face"
    assert last.failures[0].logs.startswith(".lynx/logs/")
    assert last.failures[0].code == "LX301"
    assert (last.exit_code, last.fraction) == (1, 1.0)


def test_the_sample_comes_first_and_is_reported_once(
    tmp_path: Path, campaign_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = campaign_of(tmp_path / "out")
    names = [shot.name for shot in campaign.shots]
    first = frozenset(names[-3:])
    seen: list[int] = []
    world = World(iter(()))
    _, _, summary, _ = watched(
        campaign, world, monkeypatch, first, lambda: seen.append(len(list(output_sidecars(campaign))))
    )
    assert set(summary.rendered[:3]) == first
    assert len(seen) == 1
    assert 3 <= seen[0] < 13


def output_sidecars(campaign: Any) -> Any:
    return Output(campaign.output).sidecars()


def test_a_slot_measures_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("lynx_parallel.engine.queue.time.monotonic", lambda: clock[0])
    slot = Slot()
    slot.see(Progress(0, 50, 1.0))
    assert slot.step_seconds is None
    clock[0] = 110.0
    slot.see(Progress(3, 50, 0.5))  # the third step ended at 109.5; the first began at 99
    assert slot.step_seconds == pytest.approx(3.5)
    slot.begin(None)
    assert (slot.seen, slot.step_seconds) == (None, None)
