"""Runs a context manager in a thread of its own, so that a context that hangs can be abandoned."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager
from typing import Any

from lynx_parallel.engine.process import give_up
from lynx_parallel.engine.signals import Interrupted

LOOK_EVERY_S = 0.05


class NotInTime(Exception):
    """A context was not entered in time."""


class ContextThread:
    """Enters and leaves a context manager in a thread of its own.

    The main thread stays free for signals. The thread lives as long as the context: the kernel ends Ray's processes
    together with the thread that started them.

    Args:
        name: of the thread.
        pending: numbers of the signals that have come.
    """

    def __init__(self, manager: AbstractContextManager[Any], name: str, pending: list[int]):
        self._manager = manager
        self._pending = pending
        self._ready, self._end, self._left = threading.Event(), threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._hold, name=name, daemon=True)

    def _hold(self) -> None:
        try:
            with self._manager:
                self._ready.set()
                self._end.wait()
        except BaseException as error:  # also SystemExit, which Ray raises for some failures
            self._error = error
        finally:
            self._left.set()
            self._ready.set()

    def enter(self, within: float) -> None:
        """Enters the context.

        Raises:
            NotInTime: it was not entered in time, and was abandoned.
            Interrupted: a signal came first, and it was given up.
            BaseException: what the context raised.
        """
        self._thread.start()
        deadline = time.monotonic() + within
        while not self._ready.wait(LOOK_EVERY_S):
            if self._pending:
                give_up(self._thread.name)
                raise Interrupted(self._pending[0])
            if time.monotonic() > deadline:
                give_up(self._thread.name)
                raise NotInTime
        if self._error is not None:
            raise self._error

    def leave(self, within: float) -> None:
        """Leaves the context. Abandons it if this takes longer than ``within`` seconds.

        Raises:
            BaseException: what the context raised.
        """
        self._end.set()
        if not self._left.wait(within):
            give_up(self._thread.name)
        elif self._error is not None:
            raise self._error
