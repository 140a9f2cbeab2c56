"""Signals that end a run, held back while they cannot be answered."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Interrupted(Exception):
    """A signal that ends the run came before the first shot.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def signals() -> list[int]:
    """Returns the signals that end a run. SIGHUP is left out if it is ignored, as under ``nohup``."""
    ending = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
    return [int(n) for n in ending if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]


@contextlib.contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Holds the signals back, and yields the list of those that came."""
    pending: list[int] = []
    before = {number: signal.getsignal(number) for number in signals()}
    hold(pending)
    try:
        yield pending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hold(pending: list[int]) -> None:
    """Has the signals recorded, and nothing else."""
    for number in signals():
        signal.signal(number, lambda received, _: pending.append(received))


@contextlib.contextmanager
def interruptible(pending: list[int]) -> Iterator[None]:
    """Has the first signal raise ``Interrupted`` in this block, also if it came before the block."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        pending.append(number)
        if len(pending) == 1:  # a second one must not disturb the cleaning up after the first
            raise Interrupted(number)

    for number in signals():
        signal.signal(number, interrupt)
    try:
        if pending:
            raise Interrupted(pending[0])
        yield
    finally:
        hold(pending)
