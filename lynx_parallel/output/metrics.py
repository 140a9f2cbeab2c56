"""The metrics of a run: one table, and their values from the run's status.

``view.metrics_file`` writes them to a file, ``engine.metrics`` gives them to Ray, ``docs/metrics.md`` lists them. Names
follow Prometheus: base units, and ``_total`` for what only grows. Imports neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from lynx_parallel.output.run_status import GangStatus, RunStatus


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        kind: a ``distribution`` is a histogram in Ray, and a summary without quantiles in a file.
        labels: beside ``output``, the output folder, which all metrics have.
    """

    name: str
    kind: Literal["gauge", "counter", "distribution"]
    unit: str
    help: str
    labels: tuple[str, ...] = ()


SHOTS = Metric("lynx_shots", "gauge", "shots", "Shots by state: done, failed, blocked, left.", ("state",))
RENDERED = Metric("lynx_shots_rendered_total", "counter", "shots", "Shots that this run has rendered.")
ENCODED = Metric("lynx_shots_encoded_total", "counter", "shots", "Shots that this run has encoded from saved latents.")
FAILED = Metric("lynx_shots_failed_total", "counter", "shots", "Shots that have failed in this run.")
RETRIES = Metric("lynx_retries_total", "counter", "attempts", "Failed attempts that this run has repeated.")
STEPS = Metric("lynx_steps_total", "counter", "steps", "Denoising steps that this run has made.")
STAGE = Metric("lynx_stage_seconds", "distribution", "seconds", "Time of a finished shot by stage.", ("stage",))
GPU = Metric("lynx_gpu_seconds_total", "counter", "seconds", "Time that ranks have existed, summed; also on the CPU.")
GANGS = Metric("lynx_gangs", "gauge", "gangs", "Gangs that exist or start.")
RANKS = Metric("lynx_ranks", "gauge", "ranks", "Ranks that exist or start.")
STEP_TIME = Metric("lynx_gang_step_seconds", "gauge", "seconds", "Time of a step of the gang's shot.", ("gang",))
MEMORY = Metric("lynx_gang_memory_used_bytes", "gauge", "bytes", "Memory in use on the gang's fullest GPU.", ("gang",))
MEMORY_SIZE = Metric("lynx_gang_memory_size_bytes", "gauge", "bytes", "Memory of the gang's fullest GPU.", ("gang",))
DONE = Metric("lynx_run_done_ratio", "gauge", "ratio", "Part of the run's work that is done, from 0 to 1.")
LEFT = Metric("lynx_run_left_seconds", "gauge", "seconds", "Estimated time to the end; missing while unknown.")
STARTED = Metric("lynx_run_start_time_seconds", "gauge", "seconds", "Unix time at which the run began.")
UPDATED = Metric("lynx_run_update_time_seconds", "gauge", "seconds", "Unix time of these values.")
EXIT = Metric("lynx_run_exit_code", "gauge", "", "Exit code of the run; missing before its end.")
INFO = Metric("lynx_run_info", "gauge", "", "Always 1. The labels name the run.", ("manifest", "run", "host"))

METRICS = (
    SHOTS, RENDERED, ENCODED, FAILED, RETRIES, STEPS, STAGE, GPU, GANGS, RANKS, STEP_TIME, MEMORY, MEMORY_SIZE, DONE,
    LEFT, STARTED, UPDATED, EXIT, INFO,
)  # fmt: skip
"""All metrics, in the order in which they are shown."""


@dataclass(frozen=True)
class Sample:
    """One value of a metric, with the values of its own labels."""

    metric: Metric
    value: float
    labels: tuple[str, ...] = ()


def samples(status: RunStatus) -> Iterator[Sample]:
    """Yields all values of a status but for distributions, those of a metric together."""
    made = status.rendered + status.encoded
    states = {"done": status.done + made, "failed": status.failed, "blocked": status.blocked}
    states |= {"not chosen": status.not_chosen} if status.not_chosen else {}
    states |= {"auditioned": status.waiting} if status.waiting else {}
    states["left"] = max(status.total - sum(states.values()), 0)
    yield from (Sample(SHOTS, count, (state,)) for state, count in states.items())
    yield Sample(RENDERED, status.rendered)
    yield Sample(ENCODED, status.encoded)
    yield Sample(FAILED, status.failed)
    yield Sample(RETRIES, status.retries)
    yield Sample(STEPS, status.steps)
    yield Sample(GPU, status.gpu_seconds)
    yield Sample(GANGS, len(status.gangs))
    yield Sample(RANKS, sum(gang.ranks for gang in status.gangs))
    for metric in (STEP_TIME, MEMORY, MEMORY_SIZE):
        for number, gang in enumerate(status.gangs, start=1):
            if value := _of_gang(metric, gang):
                yield Sample(metric, value, (str(number),))
    yield Sample(DONE, status.fraction)
    if status.left_seconds is not None:
        yield Sample(LEFT, status.left_seconds)
    for metric, time in ((STARTED, status.started), (UPDATED, status.updated)):
        if time:
            yield Sample(metric, datetime.fromisoformat(time).timestamp())
    if status.exit_code is not None:
        yield Sample(EXIT, status.exit_code)
    yield Sample(INFO, 1, (status.manifest, status.run, status.host))


def _of_gang(metric: Metric, gang: GangStatus) -> float:
    """Returns a value of a gang, or 0 if it has none: on the CPU, and before the first step."""
    if metric is STEP_TIME:
        return gang.step_seconds or 0.0
    return gang.memory_total and (gang.memory if metric is MEMORY else gang.memory_total)


def stage_seconds(event: Mapping[str, Any]) -> dict[str, float]:
    """Returns the seconds by stage of the shot that an event reports as finished; empty for any other event."""
    if event.get("event") != "done" or not isinstance(event.get("stages"), Mapping):
        return {}
    return {**event["stages"], "total": event["seconds"]}
