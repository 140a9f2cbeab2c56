"""What ranks answer: results, and failures as errors of ours."""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections.abc import Awaitable, Iterable
from typing import Any

import torch
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError, RayTaskError

from lynx_parallel.errors import LynxError, RenderError
from lynx_parallel.failures import disk_is_full, machine_at_fault
from lynx_parallel.text import first_line

_MEMORY = re.compile(
    "|".join(
        [
            re.escape(os.strerror(errno.ENOMEM)),  # mmap, safetensors
            "DefaultCPUAllocator|MemoryError",  # torch has no error type for memory that the CPU lacks
            # torch: "CUDA error: out of memory", "CUDA driver error: out of memory"; NCCL: "Cuda failure 2 'out of
            # memory'"; HIP says the same.
            r"\bout of memory\b|cudaErrorMemoryAllocation",
            # cuBLAS, cuBLASLt, cuDNN, cuFFT, cuSOLVER: CUBLAS_STATUS_ALLOC_FAILED and so on.
            "_ALLOC_FAILED",
            # cuDNN finds no algorithm whose workspace fits into what is left.
            "unable to find an engine|unable to find a valid cuDNN algorithm",
        ]
    ),
    re.IGNORECASE,
)
"""Matches what libraries report when host or GPU memory is full. Most raise a plain RuntimeError."""


async def answer(ref: Awaitable[Any]) -> Any:
    """A Ray result; what a rank raised comes back as itself, its death as RenderError."""
    try:
        return await ref
    except RayTaskError as error:
        cause = error.cause
        if not isinstance(cause, LynxError):
            raise RenderError(_in_a_line(cause), kind_of(cause)) from error
        if _out_of_memory(cause) or machine_at_fault(cause):
            raise RenderError(str(cause), kind_of(cause)) from error
        raise cause from None
    except OutOfMemoryError as error:
        raise RenderError(f"out of host memory: {_memory_used(error)}", "memory") from error
    except ActorDiedError as error:
        raise RenderError(_cause_of_death(error), "died") from error
    except RayError as error:
        raise RenderError(_in_a_line(error), "died") from error


async def first_failure_wins(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """Returns the results of several calls. Raises the first failure at once: the other calls may never return."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def kind_of(error: Exception) -> str:
    """Of a failure: ``disk``, ``memory`` or ``raised``."""
    return "disk" if disk_is_full(error) else "memory" if _out_of_memory(error) else "raised"


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or _MEMORY.search(str(error)) is not None


def _memory_used(error: OutOfMemoryError) -> str:
    """Returns how much memory a machine used when Ray ended one of its ranks."""
    found = re.search(r"\(IP: ([^,]+),.*? was (\S+) used / (\S+) limit", str(error))
    return f"Ray ended a rank when {found[1]} used {found[2]} of {found[3]}" if found else first_line(error)


def _cause_of_death(error: ActorDiedError) -> str:
    """Returns why a rank's process ended: what its constructor raised, if it did."""
    if "creation task" not in str(error):
        return _in_a_line(error)
    return f"a rank could not be created: {str(error).strip().splitlines()[-1].strip()}"


def _in_a_line(error: Exception) -> str:
    name, line = type(error).__name__, first_line(error)
    return line if line == name else f"{name}: {line}"
