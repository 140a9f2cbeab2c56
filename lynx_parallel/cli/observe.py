"""How a run is shown: plain lines, a live view, or almost nothing; its events and its metrics."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_parallel.errors import InputErrors
from lynx_parallel.view.lines import Lines, Quiet

if TYPE_CHECKING:
    from lynx_parallel.engine.observer import Observer
    from lynx_parallel.view.metrics_file import MetricsFile


@contextlib.contextmanager
def observed(
    lines: Lines, *, quiet: bool, events: str | None, metrics: MetricsFile | None = None
) -> Iterator[Observer]:
    """Yields the observer of a run.

    Args:
        lines: where lines go. A live view takes their place on a terminal.
        quiet: leave out everything but warnings.
        events: file for events, ``-`` for stdout, or None.
        metrics: file for metrics, or None.

    Raises:
        InputErrors: the file for events cannot be opened.
    """
    from lynx_parallel.engine.observer import Observer
    from lynx_parallel.view.events import Events, open_events
    from lynx_parallel.view.live import Screen, can_be_live

    with contextlib.ExitStack() as stack:
        view: Lines = Quiet(lines.stream) if quiet else lines
        if not quiet and can_be_live(lines.stream):
            view = stack.enter_context(Screen(lines.stream))
        observer = Observer(view, view.progress, view.watch)
        if metrics is not None:
            observer = observer.beside(metrics.watch, metrics.event)
        if events is not None:
            try:
                stream = sys.stdout if events == "-" else stack.enter_context(open_events(events))
            except OSError as error:
                raise InputErrors([f"--events {events}: {error.strerror}"]) from None
            observer = observer.beside(lambda status: None, Events(stream))
        yield observer


def metrics_path(file: str | None) -> Path | None:
    """Returns the path of ``--metrics-file``, or None without it.

    Raises:
        InputErrors: it cannot be written.
    """
    from lynx_parallel.view.metrics_file import check_metrics_file

    if file is None:
        return None
    path = Path(os.path.abspath(file))
    try:
        check_metrics_file(path)
    except OSError as error:
        raise InputErrors([f"--metrics-file {file}: {error.strerror}"]) from None
    return path
