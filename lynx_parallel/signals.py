"""Signals that end a run, held back while they cannot be answered."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


def signals() -> list[int]:
    """Those that end a run; a SIGHUP that ``nohup`` has us ignore does not."""
    ending = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
    return [int(n) for n in ending if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]


@contextlib.contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Holds SIGINT and SIGTERM back while Ray starts and ends: half-started, it could not be taken down."""
    pending: list[int] = []
    before = {number: signal.getsignal(number) for number in signals()}
    hold(pending)
    try:
        yield pending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hold(pending: list[int]) -> None:
    for number in signals():
        signal.signal(number, lambda received, _: pending.append(received))
