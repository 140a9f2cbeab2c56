"""Shows the progress of a long transfer: a bar on a terminal, otherwise a line every ``LINE_EVERY_S`` seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Self, TextIO

from lynx_parallel.text import shown_size

LINE_EVERY_S = 10.0
"""Seconds between two lines of progress if there is no terminal."""


class Transfer:
    """Counts the bytes of a transfer and shows them. May be used by several threads.

    Args:
        total: bytes to transfer.
        arrived: bytes that an earlier attempt has already transferred; part of ``total``.
        verb: what is done, such as "downloaded".
        stream: where a bar is shown if it is a terminal; None for no bar.
        say: prints a line of progress; used if there is no bar.
    """

    def __init__(self, total: int, arrived: int, verb: str, stream: TextIO | None, say: Callable[[str], None]):
        self._total, self.arrived, self._before, self._verb = total, arrived, arrived, verb
        self._say = say
        self._stopped = False
        self._lock = threading.Lock()
        self._began = self._said = time.monotonic()
        self._bar: Any = None
        if stream is not None and stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

            columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
            self._bar = Progress(verb, *columns, console=Console(file=stream))
            self._bar.add_task(verb, total=total, completed=arrived)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def stop(self) -> None:
        """Makes every later ``advance`` raise, which ends the threads that transfer."""
        self._stopped = True

    def advance(self, count: int) -> None:
        """Counts bytes that have been transferred; negative where some must be transferred again.

        Raises:
            RuntimeError: after ``stop``.
        """
        if self._stopped:
            raise RuntimeError("stopped")
        with self._lock:
            self.arrived += count
            line = self._line() if time.monotonic() >= self._said + LINE_EVERY_S else None
            if line:
                self._said = time.monotonic()
        if self._bar:
            self._bar.update(self._bar.task_ids[0], advance=count)
        elif line:
            self._say(line)

    def _line(self) -> str:
        rate = max(self.arrived - self._before, 1) / max(time.monotonic() - self._began, 1e-3)
        left = (self._total - self.arrived) / rate
        of = f"{shown_size(self.arrived)} of {shown_size(self._total)}"
        return f"{self._verb} {of}, {shown_size(int(rate))}/s, {max(left, 0) / 60:.0f} min left"
