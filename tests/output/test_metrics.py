"""The values of the metrics, from a run's status."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from lynx_parallel.output.metrics import METRICS, Metric, samples, stage_seconds
from lynx_parallel.output.run_status import GangStatus, RunStatus
from tests.helpers.repository import REPOSITORY

CPU = GangStatus("denoising", "ada/walk-t01", 3, 50, 3.3, ranks=2, device="cpu")
GPU = GangStatus("decoding", "bob/walk-t01", 50, 50, None, memory=41, memory_total=141, ranks=1, device="NVIDIA H200")
STATUS = RunStatus(
    "r", "m.yaml", "node-1", 7, "2026-11-27T06:00:00+00:00", "2026-11-27T06:01:00.500+00:00", "running", total=9,
    to_make=6, done=2, rendered=1, encoded=1, failed=1, blocked=1, retries=2, fraction=0.25, left_seconds=30.0,
    gpu_seconds=20.0, gangs=(CPU, GPU), steps=103,
)  # fmt: skip


def values(status: RunStatus) -> dict[Any, float]:
    return {(sample.metric.name, *sample.labels): sample.value for sample in samples(status)}


def test_the_values_of_a_run_at_work() -> None:
    assert values(STATUS) == {
        ("lynx_shots", "done"): 4,
        ("lynx_shots", "failed"): 1,
        ("lynx_shots", "blocked"): 1,
        ("lynx_shots", "left"): 3,
        ("lynx_shots_rendered_total",): 1,
        ("lynx_shots_encoded_total",): 1,
        ("lynx_shots_failed_total",): 1,
        ("lynx_retries_total",): 2,
        ("lynx_steps_total",): 103,
        ("lynx_gpu_seconds_total",): 20.0,
        ("lynx_gangs",): 2,
        ("lynx_ranks",): 3,
        ("lynx_gang_step_seconds", "1"): 3.3,
        ("lynx_gang_memory_used_bytes", "2"): 41,
        ("lynx_gang_memory_size_bytes", "2"): 141,
        ("lynx_run_done_ratio",): 0.25,
        ("lynx_run_left_seconds",): 30.0,
        ("lynx_run_start_time_seconds",): 1795759200.0,
        ("lynx_run_update_time_seconds",): 1795759260.5,
        ("lynx_run_info", "m.yaml", "r", "node-1"): 1,
    }


def test_the_end_has_an_exit_code_and_no_time_left() -> None:
    ended = values(replace(STATUS, exit_code=0, gangs=(), left_seconds=None))
    assert ended[("lynx_run_exit_code",)] == 0
    assert ("lynx_run_left_seconds",) not in ended
    assert (ended[("lynx_gangs",)], ended[("lynx_ranks",)]) == (0, 0)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"lynx_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.unit not in ("seconds", "bytes", "ratio") or metric.unit in metric.name
    assert metric.help.endswith(".")
    assert "\\" not in metric.help


def test_names_are_unique_and_each_metric_has_samples_or_is_a_distribution() -> None:
    assert max(Counter(metric.name for metric in METRICS).values()) == 1
    seen = {sample.metric for sample in samples(replace(STATUS, exit_code=0))}
    assert {metric for metric in METRICS if metric.kind != "distribution"} == seen


def test_stages_of_finished_shots_alone() -> None:
    done = {"event": "done", "seconds": 9.5, "stages": {"denoise": 7.0, "encode": 0.5}}
    assert stage_seconds(done) == {"denoise": 7.0, "encode": 0.5, "total": 9.5}
    assert stage_seconds({"event": "done", "recovered": True}) == {}
    assert stage_seconds({"event": "retry", "stages": {"denoise": 7.0}, "seconds": 1}) == {}


def test_the_documentation_lists_them_all() -> None:
    text = (REPOSITORY / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(lynx_[a-z_]+)` \| ([^|]*) \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", text, re.M)
    labels = {metric: ", ".join(f"`{label}`" for label in metric.labels) or "–" for metric in METRICS}
    assert rows == [(one.name, one.kind, one.unit or "–", labels[one], one.help) for one in METRICS]
