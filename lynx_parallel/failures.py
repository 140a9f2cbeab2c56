"""Classifies what libraries raise: full disk, lack of memory, a machine's fault. Imports neither torch nor Ray."""

from __future__ import annotations

import errno
import os
import re
from typing import Literal

from lynx_parallel.errors import RenderError
from lynx_parallel.text import first_line

Kind = Literal["subject", "died", "raised", "hung", "memory", "disk"]
"""Of a failed attempt: a subject that cannot be used; a rank that died, raised, hung, or ran out of memory; a full
disk."""

_MEMORY = re.compile(
    "|".join(
        [
            re.escape(os.strerror(errno.ENOMEM)),  # mmap, safetensors
            "DefaultCPUAllocator|MemoryError",  # torch has no error type for memory that the CPU lacks
            # torch: "CUDA error: out of memory", "CUDA driver error: out of memory"; NCCL: "Cuda failure 2 'out of
            # memory'"; HIP has the same text.
            r"\bout of memory\b|cudaErrorMemoryAllocation",
            # cuBLAS, cuBLASLt, cuDNN, cuFFT, cuSOLVER: CUBLAS_STATUS_ALLOC_FAILED and so on.
            "_ALLOC_FAILED",
            # cuDNN finds no algorithm whose workspace fits into the free memory.
            "unable to find an engine|unable to find a valid cuDNN algorithm",
        ]
    ),
    re.IGNORECASE,
)
"""Matches what libraries report when host or GPU memory is full. Most raise a plain RuntimeError."""


def kind_of(error: Exception) -> Literal["disk", "memory", "raised"]:
    """Returns the kind of an exception that a rank raised."""
    return "disk" if disk_is_full(error) else "memory" if is_out_of_memory(error) else "raised"


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether host or GPU memory was full. torch's own type is recognised by its name."""
    types = {kind.__name__ for kind in type(error).__mro__}
    return bool(types & {"MemoryError", "OutOfMemoryError"}) or _MEMORY.search(str(error)) is not None


def disk_is_full(error: Exception) -> bool:
    """Returns whether a disk or a quota is full. Some libraries keep only the system's message."""
    full = errno.ENOSPC, errno.EDQUOT
    return getattr(error, "errno", None) in full or any(os.strerror(number) in str(error) for number in full)


def machine_at_fault(error: Exception) -> bool:
    """Returns whether a file could not be read though it may be good: a failing disk or share, too many open files."""
    return any(os.strerror(number) in str(error) for number in (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE))


def as_render_error(error: Exception) -> RenderError:
    """Returns the error of a library as a RenderError of its kind: type and first line of the message."""
    name, line = type(error).__name__, first_line(error)
    return RenderError(line if line == name else f"{name}: {line}", kind_of(error))
