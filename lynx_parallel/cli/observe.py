"""How a run is shown: plain lines, a live view, or almost nothing; and its events."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lynx_parallel.errors import InputErrors
from lynx_parallel.view.lines import Lines, Quiet

if TYPE_CHECKING:
    from lynx_parallel.engine.observer import Observer


@contextlib.contextmanager
def observed(lines: Lines, *, quiet: bool, events: str | None) -> Iterator[Observer]:
    """Yields the observer of a run.

    Args:
        lines: where lines go. A live view takes their place on a terminal.
        quiet: leave out everything but warnings.
        events: file for events, ``-`` for stdout, or None.

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
        if events is None:
            yield Observer(view, view.progress, view.watch)
            return
        try:
            stream = sys.stdout if events == "-" else stack.enter_context(open_events(events))
        except OSError as error:
            raise InputErrors([f"--events {events}: {error.strerror}"]) from None
        yield Observer(view, view.progress, view.watch, Events(stream))
