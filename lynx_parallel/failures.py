"""Classifies failures and names remedies. Imports neither torch nor Ray."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lynx_parallel.errors import (
    KIND_CODES,
    SYSTEM_CODE,
    ClusterError,
    Kind,
    LynxError,
    RenderError,
    SubjectError,
    WithheldError,
)
from lynx_parallel.text import first_line, in_words, shown_path

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


_GENERAL = {KIND_CODES["raised"], KIND_CODES["died"], ClusterError.code}
"""Codes that say little. A known cause says more."""
SHARED_KINDS: tuple[Kind, ...] = ("raised", "died")
"""Kinds that a GPU, a machine or a fault of all shots can cause. The policy has other rules for subjects, full disks
and memory."""


@dataclass(frozen=True)
class Failure:
    """A failed attempt.

    Attributes:
        reason: type and first line of the error, for the user.
        place: GPU or machine where it failed, as ``Hello.place``; empty for the driver.
        logs: folder of the attempt's logs; None if they would not help.
    """

    kind: Kind
    reason: str
    place: str = ""
    logs: Path | None = None

    @classmethod
    def of(cls, error: LynxError | OSError, logs: Path) -> Failure:
        """Returns the failure that an error of an attempt stands for."""
        kind: Kind = "raised"
        if isinstance(error, SubjectError):
            kind = "subject"
        elif isinstance(error, WithheldError):
            kind = "withheld"
        elif isinstance(error, RenderError):
            kind = error.kind
        elif isinstance(error, OSError):  # of the driver
            kind = "disk" if disk_is_full(error) else "raised"
        place = error.place if isinstance(error, LynxError) else ""
        return cls(kind, in_words(error), place, None if kind in ("subject", "withheld") else logs)

    def __str__(self) -> str:
        return self.reason if self.logs is None else f"{self.reason} (logs: {shown_path(self.logs)})"

    def remedy(self, host: str) -> str:
        """Returns what to do about it. ``host`` is the machine where it happened."""
        return remedy_for(self.reason, host=host)

    @property
    def code(self) -> str:
        """Section of ``docs/troubleshooting.md``: that of the cause if it is known, else that of the kind."""
        code = KIND_CODES[self.kind]
        return code_of_reason(self.reason, code) if code in _GENERAL else code

    def signature(self, shot: str) -> str:
        """Returns the reason without names and numbers: equal failures of different shots have equal signatures.

        Args:
            shot: name of the shot, which paths in the reason may contain.
        """
        return re.sub(r"0x[0-9a-f]+|[0-9a-f]{8,}|\d+", "#", self.reason.replace(shot, "<shot>"))


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


@dataclass(frozen=True)
class Cause:
    """A known cause of errors of libraries and of the system.

    Attributes:
        code: section of ``docs/troubleshooting.md``.
        pattern: regular expression of the error's text.
        remedy: what to do about it. ``{free}`` stands for the memory that is free.
    """

    code: str
    pattern: str
    remedy: str


# The first match wins, so causes stand before the libraries that report them: an NCCL error that ends in "out of
# memory" is a lack of memory.
_CAUSES: tuple[Cause, ...] = (
    Cause(
        "LX401",
        r"no kernel image is available|not compatible with the current PyTorch installation",
        "This torch build has no code for this GPU. Install a torch build for the GPU's compute capability.",
    ),
    Cause(
        "LX402",
        r"Found no NVIDIA driver|libcuda\.so",
        "Install the NVIDIA driver. In a container, give it access to the GPU (docker run --gpus all). "
        "Without a GPU, use --device cpu.",
    ),
    Cause(
        "LX403",
        r"driver .*is too old|driver version is insufficient|forward compatibility was attempted|"
        r"unsupported display driver|provided PTX was compiled with an unsupported toolchain",
        "The NVIDIA driver is too old for torch's CUDA. Update the driver, or install a torch build for an older CUDA.",
    ),
    Cause(
        "LX404",
        r"not compiled with CUDA",
        "This torch build has no CUDA. Install a torch build with CUDA, or use --device cpu.",
    ),
    Cause(
        "LX305",
        r"out of memory|[A-Z]+_STATUS_ALLOC_FAILED|not enough memory|can't allocate memory|Cannot allocate memory",
        "Another process uses the memory ({free}). On a GPU, nvidia-smi lists such processes. End them and run again.",
    ),
    Cause(
        "LX405",
        r"No CUDA GPUs are available|no CUDA-capable device|invalid device ordinal|busy or unavailable",
        "torch cannot open this GPU. Compare CUDA_VISIBLE_DEVICES with nvidia-smi. "
        "A GPU in exclusive mode takes one process only.",
    ),
    Cause(
        "LX406",
        r"system not yet initialized|error 802",
        "GPUs with NVSwitch need the service nvidia-fabricmanager, in the driver's version. Start it.",
    ),
    Cause(
        "LX407",
        r"\bECC\b|GPU is lost|fallen off the bus|hardware stack error|launch failure|illegal memory access|"
        r"illegal instruction|misaligned address|CUDA error: unknown error|NVLink",
        "The GPU may be faulty. Look for Xid errors in the kernel's log (dmesg). Reset the GPU or leave it out.",
    ),
    Cause(
        "LX408",
        r"undefined symbol|flash_attn|FlashAttention|No available kernel",
        "This attention kernel does not run here. Install it built for this torch and this GPU, "
        "or choose another one with --attention.",
    ),
    Cause(
        "LX409",
        r"CUDNN_STATUS|cuDNN|libcudnn|unable to find an engine|CUBLAS_STATUS|libcublas",
        "cuDNN or cuBLAS does not fit this torch. Reinstall torch with its own NVIDIA packages, "
        "and remove other CUDA libraries from LD_LIBRARY_PATH.",
    ),
    Cause(
        "LX410",
        r"NCCL|nccl",
        "Set NCCL_SOCKET_IFNAME to the interface that reaches the other ranks. NCCL_DEBUG=INFO logs the reason.",
    ),
    Cause("LX411", r"[Gg]loo|connectFullMesh", "Set GLOO_SOCKET_IFNAME to the interface that reaches the other ranks."),
    Cause("LX412", r"ffmpeg not found", "Each machine of the run needs ffmpeg."),  # the error says how to get it
    Cause(
        "LX413",
        r"ffmpeg",
        "This ffmpeg cannot encode the video. Reinstall imageio-ffmpeg, or name another one in IMAGEIO_FFMPEG_EXE.",
    ),
    Cause("LX414", r"shared object file", "A library is missing. Install the package again."),
    Cause(
        "LX415",
        r"Read-only file system|Permission denied",
        "Make the folder writable for this user, or choose another one.",
    ),
    Cause("LX306", r"No space left|quota exceeded|File too large", "Free some space, or choose another folder."),
    Cause("LX416", r"Not a directory|File exists|No such file", "Choose another folder."),
    Cause("LX417", r"reads back other bytes", "Check the disk or the share."),
    Cause(
        "LX417",
        r"Input/output error|Stale file handle",
        "The disk or the network share fails. Look at the kernel's log (dmesg).",
    ),
    Cause("LX304", r"[Tt]imed out|[Tt]imeout", "Another rank did not answer. Look at its checks and logs first."),
)


FREE_UNKNOWN = "memory free: unknown"


def remedy_for(error: str, *, host: str, free: str = FREE_UNKNOWN) -> str:
    """Returns what to do about an error.

    Args:
        error: type and text of it.
        host: machine where it happened.
        free: memory that is free there, in words.
    """
    return known_remedy(error, free=free) or f"Run lynx-render doctor on {host}."


def known_remedy(error: str, *, free: str = FREE_UNKNOWN) -> str:
    """Returns what to do about an error; empty if the error says nothing that is known. Arguments as ``remedy_for``."""
    cause = known_cause(error)
    return cause.remedy.format(free=free) if cause else ""


def known_cause(error: str) -> Cause | None:
    """Returns the cause that an error's text shows, or None."""
    return next((cause for cause in _CAUSES if re.search(cause.pattern, error)), None)


def code_of_reason(reason: str, default: str = KIND_CODES["raised"]) -> str:
    """Returns the code of the cause that a reason shows, or the default."""
    cause = known_cause(reason)
    return cause.code if cause else default


def code_of(error: LynxError | OSError) -> str:
    """Returns the code of an error for the user: that of its cause if it is known, else that of its class."""
    if isinstance(error, OSError):
        return code_of_reason(in_words(error), SYSTEM_CODE)
    return code_of_reason(str(error), error.code) if error.code in _GENERAL else error.code
