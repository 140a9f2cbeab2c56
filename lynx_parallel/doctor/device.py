"""The part of ``lynx-render doctor`` that needs torch, run as ``python -m lynx_parallel.doctor.device``.

Each device has its own process, because a broken build may crash or hang. Each result is one line of JSON on stdout.
``doing`` is written before each step that may crash, so that the parent process can name the step.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import asdict, replace
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lynx_parallel.errors import ClusterError
from lynx_parallel.failures import remedy_for
from lynx_parallel.inputs.cluster import ATTENTION
from lynx_parallel.rank.messages import Check
from lynx_parallel.text import first_line

if TYPE_CHECKING:
    import torch

    from lynx_parallel.model.attention import Attention

DTYPES = ("bfloat16", "float32")
LINK_TIMEOUT_S = 30
"""Seconds that joining and each collective may take. The parent process waits longer (``children.TIMEOUT_S``)."""


class Emitter:
    """Writes one JSON object per line."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __call__(self, **result: Any) -> None:
        print(json.dumps(result), file=self.stream, flush=True)


def overview(emit: Emitter, cuda: bool) -> None:
    """Emits torch's versions. With ``cuda``, also emits the GPUs, or ``error`` if CUDA cannot be used."""
    emit(doing="import torch")
    import torch

    versions = {"torch": torch.__version__, "torch's CUDA": torch.version.cuda}
    emit(doing="load cuDNN")
    versions["cuDNN"] = _cudnn()
    versions["NCCL"] = ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else None
    emit(versions=versions)
    if not cuda:
        return
    emit(doing="start CUDA")
    try:
        torch.cuda.init()
        count = torch.cuda.device_count()
        if not count:
            raise RuntimeError("No CUDA GPUs are available")
    except (RuntimeError, AssertionError) as error:
        emit(error=f"{type(error).__name__}: {first_line(error)}")
        return
    for index in range(count):
        emit(doing=f"open cuda:{index}")
        emit(gpu=_gpu(index))
    emit(doing="ask for peer access")
    pairs = permutations(range(count), 2)
    emit(no_peer_access=[f"{a}-{b}" for a, b in pairs if not torch.cuda.can_device_access_peer(a, b)])


def _cudnn() -> str | None:
    import torch

    try:
        version = torch.backends.cudnn.version()
    except RuntimeError as error:
        return first_line(error)  # another cuDNN than the one torch was built for
    return None if version is None else f"{version // 10000}.{version // 100 % 100}.{version % 100}"


def _gpu(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return {
        "index": index, "name": properties.name, "uuid": f"GPU-{properties.uuid}", "memory_total": total,
        "memory_free": free, "capability": f"{properties.major}.{properties.minor}",
    }  # fmt: skip


def examine(emit: Emitter, name: str, output: Path) -> None:
    """Emits the attention kernels of a device, and a rank's self-check on it."""
    emit(doing="import torch and diffusers")
    import torch

    from lynx_parallel.rank.selfcheck import check_attention, check_rank

    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    chosen = {}
    for dtype in DTYPES:
        emit(doing=f"choose an attention kernel for {dtype}")
        chosen[dtype] = _choose("auto", device, dtype)
        found = {kernel: _try(emit, kernel, device, dtype) for kernel in ATTENTION if kernel != "auto"}
        auto = None if isinstance(chosen[dtype], str) else chosen[dtype][0]
        emit(kernels={"device": name, "dtype": dtype, "auto": auto, "found": found})
    emit(doing="self-check")
    for dtype, kernel in chosen.items():
        if isinstance(kernel, str):
            failed = Check(f"attention in {dtype}", False, 0.0, kernel, remedy_for(kernel, host=""))
            emit(check=asdict(failed))
        elif dtype == DTYPES[0]:
            for check in check_rank(device, getattr(torch, dtype), *kernel, output):
                emit(check=_shown(check))
        else:
            emit(check=_shown(check_attention(device, getattr(torch, dtype), *kernel)))


def _choose(name: str, device: torch.device, dtype: str) -> tuple[str, Attention] | str:
    """Returns the kernel's name and the kernel, or the reason why it is not available."""
    import torch

    from lynx_parallel.model.attention import choose_kernel

    try:
        chosen = choose_kernel(name, device, getattr(torch, dtype))  # type: ignore[arg-type]
    except ClusterError as error:
        line, prefix = first_line(error), f"--attention {name}: not available on "
        if not line.startswith(prefix):
            return line
        return line.removeprefix(prefix).partition(": ")[2].partition(". Available: ")[0]
    return chosen[0], chosen[1]


def _try(emit: Emitter, name: str, device: torch.device, dtype: str) -> str:
    """Returns ``works``, or the reason why the kernel does not work."""
    import torch

    from lynx_parallel.rank.selfcheck import check_attention

    emit(doing=f"attention kernel {name} in {dtype}")
    kernel = _choose(name, device, dtype)
    if isinstance(kernel, str):
        return kernel
    check = check_attention(device, getattr(torch, dtype), *kernel)
    if not check.ok:
        return check.detail
    ring = check_attention(device, getattr(torch, dtype), *kernel, need_lse=True)
    return "works" if ring.ok else f"works, but not in a ring: {ring.detail}"


def link(emit: Emitter, name: str, rank: int, size: int, store: str) -> None:
    """Emits a self-check of the group of all devices. The processes of all devices must call it."""
    emit(doing="import torch and diffusers")
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    from lynx_parallel.rank.selfcheck import check_group

    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    emit(doing="join the other devices")
    timeout = timedelta(seconds=LINK_TIMEOUT_S)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.FileStore(store, size), rank=rank, world_size=size, timeout=timeout,
    )  # fmt: skip
    emit(doing="collectives")
    for check in check_group(device, {"ring": dist.group.WORLD}, timeout):
        emit(check=_shown(replace(check, name="collectives")))
    with contextlib.suppress(RuntimeError):
        dist.barrier()  # a rank that ends early breaks its peers' connections
    dist.destroy_process_group()


def _shown(check: Check) -> dict[str, Any]:
    """Returns the check as JSON. Replaces a remedy that says to run this command: the user has just run it."""
    if "lynx-render doctor" in check.remedy:
        check = replace(check, remedy="No remedy is known for this error. Report it with the output of --json.")
    return asdict(check)


def main(arguments: list[str]) -> None:
    # Libraries may print to stdout. Results go to a copy of it, and stdout becomes stderr.
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    emit = Emitter(results)
    match arguments:
        case ["overview", device]:
            overview(emit, device == "cuda")
        case ["examine", device, output]:
            examine(emit, device, Path(output))
        case ["link", device, rank, size, store]:
            link(emit, device, int(rank), int(size), store)
        case _:
            sys.exit(f"unknown arguments: {arguments}")


if __name__ == "__main__":
    main(sys.argv[1:])
