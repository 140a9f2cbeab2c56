"""Calls at intervals."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Iterator

PROGRESS_EVERY_S = 15.0


@contextlib.contextmanager
def report_every(seconds: float, report: Callable[[float], Awaitable[None]]) -> Iterator[None]:
    """Calls ``report`` at intervals during the block, with the seconds since its beginning."""

    async def reporting() -> None:
        for count in itertools.count(1):
            await asyncio.sleep(seconds)
            await report(count * seconds)

    task = asyncio.ensure_future(reporting())
    try:
        yield
    finally:
        task.cancel()
