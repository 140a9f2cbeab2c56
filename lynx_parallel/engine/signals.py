"""Defers the signals that end a run while the driver cannot act on them."""

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
    """Defers the signals during the block. Yields the list of the received ones."""
    pending: list[int] = []
    before = {number: signal.getsignal(number) for number in signals()}
    hold(pending)
    try:
        yield pending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hold(pending: list[int]) -> None:
    """Makes the signals append their numbers to ``pending``, and do nothing else."""
    for number in signals():
        signal.signal(number, lambda received, _: pending.append(received))


@contextlib.contextmanager
def interruptible(pending: list[int]) -> Iterator[None]:
    """Makes the first signal raise ``Interrupted`` in the block, also if it was received before."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        pending.append(number)
        if len(pending) == 1:  # a second signal must not disturb the cleanup after the first
            raise Interrupted(number)

    for number in signals():
        signal.signal(number, interrupt)
    try:
        if pending:
            raise Interrupted(pending[0])
        yield
    finally:
        hold(pending)
