"""Results of ranks, and their failures as errors of this package."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Iterable
from typing import Any

from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError, RayTaskError

from lynx_parallel.errors import LynxError, RenderError
from lynx_parallel.failures import as_render_error, is_out_of_memory, kind_of, machine_at_fault
from lynx_parallel.text import first_line


async def answer(ref: Awaitable[Any]) -> Any:
    """Returns the result of a call to a rank.

    Raises:
        LynxError: the rank raised it.
        RenderError: the rank raised anything else, died, or could not read a file because its machine is at fault.
    """
    try:
        return await ref
    except RayTaskError as error:
        cause = error.cause
        if not isinstance(cause, LynxError):
            raise as_render_error(cause) from error
        if is_out_of_memory(cause) or machine_at_fault(cause):
            raise RenderError(str(cause), kind_of(cause)) from error
        raise cause from None
    except OutOfMemoryError as error:
        raise RenderError(f"out of host memory: {_memory_used(error)}", "memory") from error
    except ActorDiedError as error:
        raise RenderError(_cause_of_death(error), "died") from error
    except RayError as error:
        raise RenderError(str(as_render_error(error)), "died") from error


async def first_failure_wins(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """Returns the results of several calls. Raises the first failure at once: the other calls may never return."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _memory_used(error: OutOfMemoryError) -> str:
    """Returns how much memory a machine used when Ray ended one of its ranks."""
    found = re.search(r"\(IP: ([^,]+),.*? was (\S+) used / (\S+) limit", str(error))
    return f"Ray ended a rank when {found[1]} used {found[2]} of {found[3]}" if found else first_line(error)


def _cause_of_death(error: ActorDiedError) -> str:
    """Returns why a rank's process ended: the error of its constructor, if it has one."""
    if "creation task" not in str(error):
        return str(as_render_error(error))
    return f"a rank could not be created: {str(error).strip().splitlines()[-1].strip()}"
