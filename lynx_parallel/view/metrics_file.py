"""``--metrics-file``: the metrics of a run in Prometheus' text format, for the textfile collector of node exporter."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from lynx_parallel.output.atomic import replace_at_once
from lynx_parallel.output.journal import now
from lynx_parallel.output.metrics import STAGE, Metric, Sample, samples, stage_seconds
from lynx_parallel.output.run_status import RunStatus

WRITE_EVERY_S = 5.0
"""Seconds between two writes."""
_TYPES = {"gauge": "gauge", "counter": "counter", "distribution": "summary"}


class MetricsFile:
    """Replaces a file with the current metrics every few seconds. The last values stay after the run.

    If the file cannot be written, on a full disk for example, the old one stays, and the run continues.

    Args:
        output: the run's output folder, or those of its campaigns: a label of all metrics.
        clock: seconds.
    """

    def __init__(self, path: Path, output: str, clock: Callable[[], float] = time.monotonic):
        self._path = path
        self._output = output
        self._clock = clock
        self._written = -WRITE_EVERY_S
        self._stages: dict[str, list[float]] = defaultdict(list)
        self._last: RunStatus | None = None

    def watch(self, status: RunStatus) -> None:
        """Takes the run's status, and writes it if it is time."""
        self._last = status
        if self._clock() - self._written >= WRITE_EVERY_S or status.exit_code is not None:
            self._written = self._clock()
            with contextlib.suppress(OSError):
                replace_at_once(self._path, exposition(status, self._stages, self._output).encode())

    def event(self, event: Mapping[str, Any]) -> None:
        """Takes an event of the run."""
        for stage, seconds in stage_seconds(event).items():
            self._stages[stage].append(seconds)

    def end(self, exit_code: int, without_a_run: Callable[[], RunStatus]) -> None:
        """Writes the last values.

        Args:
            without_a_run: returns the status if no run has begun, because nothing was to do or Ray did not start.
        """
        last = self._last or without_a_run()
        self.watch(replace(last, updated=now(), state="ended", gangs=(), left_seconds=None, exit_code=exit_code))


def check_metrics_file(path: Path) -> None:
    """Tries to write beside a file of metrics, and leaves nothing there.

    Raises:
        OSError: the file cannot be written.
    """
    if path.exists() and not path.is_file():
        raise OSError(0, "not a regular file", str(path))
    probe = path.with_name(f"{path.name}.probe")
    replace_at_once(probe, b"")
    probe.unlink()


def exposition(status: RunStatus, stages: Mapping[str, list[float]], output: str) -> str:
    """Returns metrics in Prometheus' text format.

    Args:
        stages: seconds of each finished shot, by stage.
        output: the output folder, a label of all metrics.
    """
    lines: list[str] = []
    for metric, found in groupby(samples(status), key=lambda sample: sample.metric):
        lines += [*_head(metric), *(_line(sample, output) for sample in found)]
    if stages:
        lines += _head(STAGE)
        for stage, seconds in stages.items():
            lines.append(_line(Sample(STAGE, round(sum(seconds), 3), (stage,)), output, "_sum"))
            lines.append(_line(Sample(STAGE, len(seconds), (stage,)), output, "_count"))
    return "\n".join(lines) + "\n"


def _head(metric: Metric) -> Iterator[str]:
    yield f"# HELP {metric.name} {metric.help}"
    yield f"# TYPE {metric.name} {_TYPES[metric.kind]}"


def _line(sample: Sample, output: str, suffix: str = "") -> str:
    names = ("output", *sample.metric.labels)
    pairs = zip(names, (output, *sample.labels), strict=True)
    labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)
    return f"{sample.metric.name}{suffix}{{{labels}}} {sample.value!r}"


def _escaped(value: str) -> str:
    """Returns the value of a label as the text format needs it. A file name of another encoding becomes escapes."""
    text = value.encode(errors="backslashreplace").decode()
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
