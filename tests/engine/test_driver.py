"""The driver without Ray: what ends a run, and what it then says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from lynx_parallel.engine.campaign_run import CampaignRun
from lynx_parallel.engine.driver import Driver
from lynx_parallel.engine.observer import Observer
from lynx_parallel.errors import ClusterError
from lynx_parallel.inputs.cluster import ClusterSpec
from lynx_parallel.output.lock import Lock
from lynx_parallel.plan.plan import Plan, make_plan
from lynx_parallel.text import counted, shown_duration
from tests.helpers.campaigns import WEIGHTS, finish, load, write
from tests.helpers.planned import parts_of


class Endless:
    """As ``Supervisor``, with work that never ends."""

    def __init__(self, *_: Any):
        pass

    async def make_all(self) -> None:
        await asyncio.sleep(600)

    async def save_and_stop(self, work: asyncio.Future[None], within: float | None) -> None:
        work.cancel()


class Healthy:
    """As ``Cluster``, with a Ray that does not fail."""

    local = True

    async def watch(self) -> None:
        await asyncio.sleep(600)


def stopped(folder: Path, monkeypatch: pytest.MonkeyPatch, cluster: ClusterSpec, sent: int = 0) -> tuple[Driver, Any]:
    """Runs a driver until it is stopped. Returns it and the lines that it said."""
    monkeypatch.setattr("lynx_parallel.engine.placement.available", lambda _: ("cpu", ()))
    monkeypatch.setattr("lynx_parallel.engine.parts.InTurn", Endless)
    write(folder)
    lines: list[str] = []
    campaign = load(folder)
    driver = Driver(
        [CampaignRun(campaign, parts_of(campaign), lambda: pytest.fail("not planned"))], cluster, Observer(lines.append)
    )

    async def run() -> None:
        if sent:
            asyncio.get_running_loop().call_later(0.2, os.kill, os.getpid(), sent)
        await driver._until_stopped([(driver.campaigns[0], [])], Healthy(), [])  # type: ignore[arg-type]

    asyncio.run(run())
    return driver, lines


@pytest.mark.parametrize(("after", "shown"), [(0.0, "0s"), (1.0, "1s")])
def test_stop_after_reports_itself(folder: Path, monkeypatch: pytest.MonkeyPatch, after: float, shown: str) -> None:
    driver, lines = stopped(folder, monkeypatch, ClusterSpec(stop_after=after))
    assert lines == [f"--stop-after {shown}: stopping; finished shots stay, run again to resume"]
    assert driver.summaries[0].exit_code == 75


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int) -> None:
    driver, lines = stopped(folder, monkeypatch, ClusterSpec(stop_after=3600.0), number)
    assert lines == [f"{number.name}: stopping; finished shots stay, run again to resume"]
    assert driver.summaries[0].exit_code == code


def test_a_folder_in_use_is_reported_before_anything_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other driver may be making the very shots that the question is about."""
    write(folder)
    campaign = load(folder)
    monkeypatch.setattr("lynx_parallel.engine.campaign_run.check_parts", lambda *_: None)

    def driver() -> Driver:
        one = CampaignRun(
            campaign, parts_of(campaign), lambda: make_plan(campaign, WEIGHTS, today=date(2026, 1, 1)),
            check=lambda todo: pytest.fail("asked"),
        )  # fmt: skip
        return Driver([one], ClusterSpec(), Observer(lambda line: None))

    with Lock(folder / "out" / ".lynx" / "lock"), pytest.raises(ClusterError, match="another driver is at work"):
        driver().run()
    with pytest.raises(pytest.fail.Exception, match="asked"):
        driver().run()


@pytest.mark.parametrize("left", [0, 1])
def test_what_is_left_is_counted_once_the_folder_is_ours(
    folder: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """Another driver finishes shots while this one starts Ray."""
    write(folder)
    campaign = load(folder)

    def replan() -> Plan:
        return make_plan(campaign, WEIGHTS, today=date(2026, 1, 1))

    @contextlib.contextmanager
    def ray(*_: Any) -> Iterator[Any]:
        for shot in campaign.shots[left:]:
            finish(campaign, shot)
        yield Healthy()

    monkeypatch.setattr("lynx_parallel.engine.cluster.ray_cluster", ray)
    monkeypatch.setattr(Driver, "_run", lambda *_: None)
    one = CampaignRun(campaign, parts_of(campaign), replan)
    driver = Driver([one], ClusterSpec(), Observer(lambda line: None))
    driver._start([one])
    assert driver.summaries[0].left == left


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def test_one_and_many() -> None:
    assert [counted(number, "shot") for number in (0, 1, 2)] == ["0 shots", "1 shot", "2 shots"]
    shown = {13800.0: "3h50m", 2700.0: "45m", 90.0: "1m30s", 3601.0: "1h1s", 0.0: "0s"}
    assert {seconds: shown_duration(seconds) for seconds in shown} == shown
