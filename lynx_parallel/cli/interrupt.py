"""Ctrl-C and SIGTERM outside of a run: one line and an exit code, at any moment. Imports only what Python has loaded.

A run has handlers of its own, see ``driver``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from lynx_parallel.engine.isolation import isolate

_DEFAULT: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
_received: list[int] = []


class _Interrupt(KeyboardInterrupt):
    """KeyboardInterrupt itself, raised in code that ``exec`` runs, has CPython end by SIGINT whatever the exit code."""


def main() -> None:
    """Runs ``lynx-render``. A signal ends the process at once while the commands are imported, which takes a second."""
    isolate()
    with _answered() as answer:
        answer(_end)
        from lynx_parallel.engine.process import leave, open_streams

        open_streams()
        from lynx_parallel.cli.entry import run

        answer(_raise)
        try:
            code = run(sys.argv[1:])
        except BaseException:  # also an error of a library that was interrupted
            if not _received:
                raise
            code = exit_code()
        if _received:
            code = exit_code()
            answer(lambda number, _: os._exit(128 + number))  # a second one
            _tell(_received[0])
    leave(code)


def exit_code() -> int:
    """Returns the exit code of a process that a signal ends: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (_received[0] if _received else signal.SIGINT)


@contextlib.contextmanager
def _answered() -> Iterator[Callable[[Any], None]]:
    """Yields what sets the handler of both signals. One that is ignored, as in a shell's background, stays so."""
    before = {number: signal.getsignal(number) for number in _DEFAULT}
    ours = [number for number, handler in before.items() if handler == _DEFAULT[number]]

    def answer(handler: Any) -> None:
        for number in ours:
            signal.signal(number, handler)

    _received.clear()
    try:
        yield answer
    finally:
        for number in ours:
            signal.signal(number, before[number])


def _raise(number: int, _: FrameType | None) -> None:
    _received.append(number)
    raise _Interrupt


def _end(number: int, _: FrameType | None) -> None:
    """Ends the process without a traceback, even in the middle of an import."""
    _tell(number)
    os._exit(128 + number)


def _tell(number: int) -> None:
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    with contextlib.suppress(OSError):
        os.write(2, f"stopped by {name}\n".encode())
