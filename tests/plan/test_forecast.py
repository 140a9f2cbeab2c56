"""How long a run takes: fitted to finished shots, remembered, or by arithmetic."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lynx_parallel.inputs.cards import named_card
from lynx_parallel.inputs.cluster import ClusterSpec
from lynx_parallel.output.folder import Output
from lynx_parallel.plan.estimate import Rates, estimate, fit, rates_of_card, remember, remembered, sidecars_of
from lynx_parallel.plan.forecast import Machine, late, machine_of, make_forecast, read_deadline
from lynx_parallel.plan.parts import Part
from lynx_parallel.plan.plan import Known, Plan, make_plan
from lynx_parallel.plan.weights import find_weights
from tests.helpers.campaigns import WEIGHTS, finish, load, write
from tests.helpers.planned import TODAY

NOW = datetime(2026, 11, 27, 22, 0, tzinfo=UTC)
CPU = Machine("cpu", "cpu", 2)


@pytest.fixture
def part(tmp_path: Path, demo: Path, monkeypatch: pytest.MonkeyPatch) -> Part:
    write(tmp_path)
    campaign = load(tmp_path)
    weights = find_weights(campaign.pipeline.model)
    monkeypatch.setenv("LYNX_CACHE", str(tmp_path / "cache"))  # other tests leave rates of this machine in theirs
    return Part(campaign, weights, None, WEIGHTS, Known(WEIGHTS))


def plan_of(part: Part) -> Plan:
    return make_plan(part.campaign, WEIGHTS, today=TODAY)


def timed(part: Part, name: str, seconds: float, device: str = "cpu", ranks: int = 1) -> None:
    """Finishes a shot that took this long to denoise; decoding and encoding take a second each."""
    shot = next(shot for shot in part.campaign.shots if shot.name == name)
    spent = {"denoise": seconds, "decode": 1.0, "encode": 1.0, "total": seconds + 2.5}
    finish(part.campaign, shot, seconds=spent, ranks=[{"rank": n, "device": device} for n in range(ranks)])


def test_rates_are_fitted_to_finished_shots(part: Part) -> None:
    for name, seconds in (("ada/walk-t01", 10.0), ("ada/run-t01", 12.0), ("bob/walk-t01", 50.0)):
        timed(part, name, seconds)
    made = make_forecast([part], plan_of(part), ClusterSpec(ulysses=1), CPU)
    [one] = made.parts
    assert one.estimate is not None
    assert one.estimate.shot_seconds == pytest.approx(12.0 + 1.0 + 0.5), "median, decoding, and what is left"
    assert one.estimate.source == "3 shots of this folder"
    assert made.seconds == pytest.approx(13.5)


def test_shots_on_other_devices_do_not_count(part: Part) -> None:
    timed(part, "ada/walk-t01", 10.0, device="NVIDIA H200")
    assert make_forecast([part], plan_of(part), ClusterSpec(), CPU).seconds is None
    h200 = machine_of(ClusterSpec(), named_card("H200"))
    [one] = make_forecast([part], plan_of(part), ClusterSpec(), h200).parts
    assert one.estimate is not None
    assert one.estimate.source == "1 shot of this folder"


def test_ranks_and_gangs_share_the_work(part: Part) -> None:
    timed(part, "ada/walk-t01", 8.0, ranks=2)
    items = plan_of(part).of("render")
    rates = fit(part, sidecars_of(part, Output(part.campaign.output), plan_of(part).of("done")))
    assert rates is not None
    alone = estimate(part, items, rates, ranks=1, gangs=1)
    assert alone.shot_seconds == pytest.approx(16 + 2 + 0.5)
    assert alone.seconds == pytest.approx(3 * 18.5)
    assert alone.rank_hours == pytest.approx(3 * 18.5 / 3600)
    assert estimate(part, items, rates, ranks=2, gangs=1).shot_seconds == pytest.approx(8 + 1 + 0.5)
    assert estimate(part, items, rates, ranks=1, gangs=3).seconds == pytest.approx(18.5)
    assert estimate(part, items, rates, ranks=1, gangs=30).seconds == pytest.approx(18.5), (
        "no shot is faster than itself"
    )


def test_sidecars_that_tell_no_times_are_left_out(part: Part) -> None:
    found: list[dict[str, Any]] = [{}, {"seconds": {"denoise": 1}}, {"seconds": None, "ranks": 3, "settings": []}]
    assert fit(part, found) is None
    finish(
        part.campaign, part.campaign.shots[0], seconds={"denoise": 0, "decode": 0, "encode": 0, "total": 0}, ranks=[]
    )
    assert make_forecast([part], plan_of(part), ClusterSpec(), CPU).seconds is None


def test_rates_of_a_machine_serve_other_folders(part: Part, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LYNX_CACHE", str(tmp_path / "cache"))
    assert remembered(part, "cpu") is None
    remember(part, "cpu", Rates(1e9, 0.5, 0.1, "x"))
    assert remembered(part, "cpu") == Rates(1e9, 0.5, 0.1, "earlier runs on this machine")
    assert remembered(part, "NVIDIA H200") is None
    [one] = make_forecast([part], plan_of(part), ClusterSpec(), CPU).parts
    assert one.estimate is not None
    assert one.estimate.source == "earlier runs on this machine"
    (tmp_path / "cache" / "rates.json").write_text("{")
    assert remembered(part, "cpu") is None
    remember(part, "cpu", Rates(2e9, 0.5, 0.1, "x"))
    assert len(json.loads((tmp_path / "cache" / "rates.json").read_text())) == 1


def test_arithmetic_agrees_with_the_shot_that_was_measured_on_an_h200() -> None:
    """12 forwards and a decoding in fp32 took 40.6 and 10.1 s (benchmarks/results/gpu_nvidia_h200_shot.md)."""
    rates = rates_of_card(named_card("H200"), "float32")
    assert 12 * 1.678e15 / rates.flops == pytest.approx(40.6, rel=0.05)
    assert 832 * 480 * 81 / 1e6 * rates.decode == pytest.approx(10.1, rel=0.05)


def test_a_plan_in_words(part: Part) -> None:
    machine = machine_of(ClusterSpec(max_gpus=8), named_card("H100"))
    made = make_forecast([part], plan_of(part), ClusterSpec(max_gpus=8), machine)
    lines = list(made.lines(NOW))
    assert lines[0] == "layout: one rank, 4 gangs: many small gangs render more shots per hour than few large ones"
    assert lines[1].startswith("memory: ")
    assert lines[1].endswith("H100 has 80 GB")
    assert lines[2].endswith("from arithmetic: 50% of the 989 TFLOP/s of H100")
    assert lines[3].startswith("in all: 0.0 GPU-hours, about 0 s on 8 × H100, until about 22:00")
    assert json.dumps(made.as_json())


def test_the_time_is_unknown_without_rates(part: Part, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LYNX_CACHE", str(tmp_path / "empty"))
    made = make_forecast([part], plan_of(part), ClusterSpec(), CPU)
    assert list(made.lines(NOW))[-1].startswith("time: unknown: no shot was timed on cpu yet")
    assert late(made, NOW, NOW) == "--deadline: the end of the run cannot be estimated yet"


def test_deadlines(part: Part) -> None:
    assert read_deadline("06:00", NOW) == datetime(2026, 11, 28, 6, 0, tzinfo=UTC)
    assert read_deadline("23:30", NOW) == datetime(2026, 11, 27, 23, 30, tzinfo=UTC)
    assert read_deadline("2026-12-01T06:00+00:00", NOW) == datetime(2026, 12, 1, 6, 0, tzinfo=UTC)
    assert read_deadline("soon", NOW) is None
    timed(part, "ada/walk-t01", 3600.0)
    made = make_forecast([part], plan_of(part), ClusterSpec(ulysses=1), CPU)
    assert late(made, NOW + timedelta(hours=4), NOW) == ""
    warning = late(made, NOW + timedelta(hours=2), NOW)
    assert warning == "--deadline: the run is estimated to end at Sat 01:00, 60 min after Sat 00:00"
