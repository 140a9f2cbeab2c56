"""Handlers of Ctrl-C and SIGTERM outside of a run: one line and an exit code. Imports only the standard library.

The driver has handlers of its own, see ``engine.signals``.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_DEFAULT: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
received: list[int] = []
"""Numbers of the signals that were received, in order."""


class _Interrupt(KeyboardInterrupt):
    """A subclass, because CPython ends by SIGINT after a plain KeyboardInterrupt in code that ``exec`` runs."""


def exit_code() -> int:
    """Returns the exit code of a process that a signal ends: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (received[0] if received else signal.SIGINT)


@contextlib.contextmanager
def handled() -> Iterator[Callable[[Any], None]]:
    """Yields a function that sets the handler of both signals.

    A signal that is ignored stays ignored, as SIGINT is for a process that a shell starts in the background.
    """
    before = {number: signal.getsignal(number) for number in _DEFAULT}
    ours = [number for number, handler in before.items() if handler == _DEFAULT[number]]

    def set_handler(handler: Any) -> None:
        for number in ours:
            signal.signal(number, handler)

    received.clear()
    try:
        yield set_handler
    finally:
        for number in ours:
            signal.signal(number, before[number])


def interrupt(number: int, _: FrameType | None) -> None:
    received.append(number)
    raise _Interrupt


def end_process(number: int, _: FrameType | None) -> None:
    """Ends the process without a traceback, even in the middle of an import."""
    report(number)
    os._exit(128 + number)


def report(number: int) -> None:
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    with contextlib.suppress(OSError):
        os.write(2, f"stopped by {name}\n".encode())
