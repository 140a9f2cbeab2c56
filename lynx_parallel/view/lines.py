"""Lines for the user on a terminal, a pipe or a log, and the log of ``--debug``."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from lynx_parallel.output.run_status import RunStatus

SUM_UP_EVERY_S = 30.0
"""Seconds between two lines that sum up the run."""


class Lines:
    """Prints one line at a time and flushes it, so that a pipe or a log shows it immediately.

    If it cannot be written, only the line is lost: a reader such as ``| head`` has ended, the terminal is closed, or a
    log's disk is full.

    Args:
        stream: stdout or stderr. With ``--json``, progress goes to stderr.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream
        self._summed_up: float | None = None

    def __call__(self, line: str) -> None:
        with contextlib.suppress(OSError):
            print(line, file=self.stream, flush=True)

    def progress(self, line: str) -> None:
        """Prints a line that is repeated with other numbers."""
        self(line)

    def watch(self, status: RunStatus) -> None:
        """Sums up the run in a line every ``SUM_UP_EVERY_S`` seconds."""
        from lynx_parallel.view.run_text import sum_up

        if self._summed_up is None:
            self._summed_up = time.monotonic()
        if status.exit_code is None and time.monotonic() - self._summed_up >= SUM_UP_EVERY_S:
            self._summed_up = time.monotonic()
            self.progress(sum_up(status))

    @contextlib.contextmanager
    def if_slow(self, line: str, after: float = 0.6) -> Iterator[None]:
        """Prints a line if the block takes more than ``after`` seconds."""
        timer = threading.Timer(after, self, [line])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


class Quiet(Lines):
    """Prints warnings alone."""

    def __call__(self, line: str) -> None:
        if line.startswith("warning: "):
            super().__call__(line)


def show_log(stream: TextIO) -> None:
    """Shows the debug messages of this package's loggers: time, module, message."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s.%(msecs)03d %(name)s: %(message)s", datefmt="%H:%M:%S"))
    logger = logging.getLogger("lynx_parallel")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.handlers[:] = [handler]
