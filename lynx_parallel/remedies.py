"""Remedies for faults of a machine, by the text of their error. Imports neither torch nor Ray."""

from __future__ import annotations

import re

# (pattern of the error's text, remedy). The first match wins, so causes stand before the libraries that report them:
# an NCCL error that ends in "out of memory" is a lack of memory.
_REMEDIES: tuple[tuple[str, str], ...] = (
    (
        r"no kernel image is available|not compatible with the current PyTorch installation",
        "This torch build has no code for this GPU. Install a torch build for the GPU's compute capability.",
    ),
    (
        r"Found no NVIDIA driver|libcuda\.so",
        "Install the NVIDIA driver. In a container, give it access to the GPU (docker run --gpus all). "
        "Without a GPU, use --device cpu.",
    ),
    (
        r"driver .*is too old|driver version is insufficient|forward compatibility was attempted|"
        r"unsupported display driver|provided PTX was compiled with an unsupported toolchain",
        "The NVIDIA driver is too old for torch's CUDA. Update the driver, or install a torch build for an older CUDA.",
    ),
    (r"not compiled with CUDA", "This torch build has no CUDA. Install a torch build with CUDA, or use --device cpu."),
    (
        r"out of memory|[A-Z]+_STATUS_ALLOC_FAILED|not enough memory|can't allocate memory|Cannot allocate memory",
        "Another process uses the memory ({free}). On a GPU, nvidia-smi lists such processes. End them and run again.",
    ),
    (
        r"No CUDA GPUs are available|no CUDA-capable device|invalid device ordinal|busy or unavailable",
        "torch cannot open this GPU. Compare CUDA_VISIBLE_DEVICES with nvidia-smi. "
        "A GPU in exclusive mode takes one process only.",
    ),
    (
        r"system not yet initialized|error 802",
        "GPUs with NVSwitch need the service nvidia-fabricmanager, in the driver's version. Start it.",
    ),
    (
        r"\bECC\b|GPU is lost|fallen off the bus|hardware stack error|launch failure|illegal memory access|"
        r"illegal instruction|misaligned address|CUDA error: unknown error|NVLink",
        "The GPU may be faulty. Look for Xid errors in the kernel's log (dmesg). Reset the GPU or leave it out.",
    ),
    (
        r"undefined symbol|flash_attn|FlashAttention|No available kernel",
        "This attention kernel does not run here. Install it built for this torch and this GPU, "
        "or choose another one with --attention.",
    ),
    (
        r"CUDNN_STATUS|cuDNN|libcudnn|unable to find an engine|CUBLAS_STATUS|libcublas",
        "cuDNN or cuBLAS does not fit this torch. Reinstall torch with its own NVIDIA packages, "
        "and remove other CUDA libraries from LD_LIBRARY_PATH.",
    ),
    (
        r"NCCL|nccl",
        "Set NCCL_SOCKET_IFNAME to the interface that reaches the other ranks. NCCL_DEBUG=INFO logs the reason.",
    ),
    (r"[Gg]loo|connectFullMesh", "Set GLOO_SOCKET_IFNAME to the interface that reaches the other ranks."),
    (r"ffmpeg not found", "Each machine of the run needs ffmpeg."),  # the error says how to get it
    (
        r"ffmpeg",
        "This ffmpeg cannot encode the video. Reinstall imageio-ffmpeg, or name another one in IMAGEIO_FFMPEG_EXE.",
    ),
    (r"shared object file", "A library is missing. Install the package again."),
    (r"Read-only file system|Permission denied", "Make the folder writable for this user, or choose another one."),
    (r"No space left|quota exceeded|File too large", "Free some space, or choose another folder."),
    (r"Not a directory|File exists|No such file", "Choose another folder."),
    (r"reads back other bytes", "Check the disk or the share."),
    (r"Input/output error|Stale file handle", "The disk or the network share fails. Look at the kernel's log (dmesg)."),
    (r"[Tt]imed out|[Tt]imeout", "Another rank did not answer. Look at its checks and logs first."),
)


def remedy_for(error: str, *, host: str, free: str = "memory free: unknown") -> str:
    """Returns what to do about an error.

    Args:
        error: type and text of it.
        host: machine where it happened.
        free: memory that is free there, in words.
    """
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, error):
            return remedy.format(free=free)
    return f"Run lynx-render doctor on {host}."
