"""The metrics of a run on Ray's own Prometheus endpoints, through ``ray.util.metrics``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from lynx_parallel.output.metrics import METRICS, STAGE, Metric, Sample, samples, stage_seconds
from lynx_parallel.output.run_status import RunStatus

_log = logging.getLogger(__name__)

BUCKETS_S = [0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0]
"""Upper bounds of the histogram of stages, in seconds."""


class RayMetrics:
    """Gives the metrics of a run to Ray, which this process must have joined.

    An error of Ray ends the metrics, and the run continues.

    Args:
        output: the run's output folder, or those of its campaigns: a label of all metrics.
    """

    def __init__(self, output: str):
        self._output = output
        self._made: dict[Metric, Any] = {}
        self._before: dict[tuple[Metric, tuple[str, ...]], float] = {}
        self._failed = False
        self._try(self._make)

    def watch(self, status: RunStatus) -> None:
        """Takes the run's status."""
        self._try(lambda: self._set(status))

    def event(self, event: Mapping[str, Any]) -> None:
        """Takes an event of the run."""
        for stage, seconds in stage_seconds(event).items():
            self._try(lambda stage=stage, seconds=seconds: self._observe(stage, seconds))  # type: ignore[misc]

    def _make(self) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        for metric in METRICS:
            names = ("output", *metric.labels)
            if metric.kind == "distribution":
                self._made[metric] = Histogram(metric.name, metric.help, BUCKETS_S, names)
            else:
                self._made[metric] = (Counter if metric.kind == "counter" else Gauge)(metric.name, metric.help, names)

    def _set(self, status: RunStatus) -> None:
        now = {(sample.metric, sample.labels): sample.value for sample in samples(status)}
        for metric, labels in self._before.keys() - now.keys():
            now[metric, labels] = 0.0  # of a gang that has ended: Ray would show its last value for ever
        for (metric, labels), value in now.items():
            made, tags = self._made[metric], self._tags(Sample(metric, value, labels))
            if metric.kind == "gauge":
                made.set(value, tags)
            elif (more := value - self._before.get((metric, labels), 0.0)) > 0:
                made.inc(more, tags)
        self._before = now

    def _observe(self, stage: str, seconds: float) -> None:
        self._made[STAGE].observe(seconds, self._tags(Sample(STAGE, seconds, (stage,))))

    def _tags(self, sample: Sample) -> dict[str, str]:
        values = (self._output, *sample.labels)
        return {
            name: value.encode(errors="backslashreplace").decode()
            for name, value in zip(("output", *sample.metric.labels), values, strict=True)
        }

    def _try(self, action: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            action()
        except Exception as error:  # of a library whose metrics are no reason to lose a run
            self._failed = True
            _log.debug("no metrics in Ray: %s", error, exc_info=error)
