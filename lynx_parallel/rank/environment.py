"""The environment of rank processes: every variable that is set for them, and why. Imports neither torch nor Ray.

A variable that the user has set is not changed, with two exceptions: ``OMP_NUM_THREADS`` of ranks on this machine, and
the variables that hide the GPUs from a rank on the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import psutil

KEEP_FREED_MEMORY = {
    # glibc otherwise returns a step's memory to the system, and the next step faults it in again.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20),
}
_CPU = KEEP_FREED_MEMORY | {
    # Idle OpenMP threads otherwise spin, and keep the cores from each other, see benchmarks/openmp.py.
    "OMP_WAIT_POLICY": "passive",
}
_CUDA = {
    # Shots of different sizes otherwise fragment the allocator's memory.
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    # A rank's log then holds NCCL's own reason for a failure, not only "unhandled system error".
    "NCCL_DEBUG": "WARN",
}
_NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
"""A rank on the CPU never uses a GPU, with any build of torch, on any machine."""


def rank_environment(device: str, threads: int | None, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the variables with which a rank's process is started.

    NCCL chooses its interface and transport itself, unless the user sets ``NCCL_SOCKET_IFNAME``, ``NCCL_IB_HCA`` and
    the like in the environment of Ray's nodes. Torch's own NCCL settings (``TORCH_NCCL_…``) stay at their defaults: the
    driver finds a hanging rank long before their timeouts.

    Args:
        device: ``cuda`` or ``cpu``.
        threads: of OpenMP; None leaves the variable to Ray, because the rank's machine is not known yet.
        given: the driver's environment.
    """
    wanted = _CUDA if device == "cuda" else _CPU
    known = {name.replace("PYTORCH_CUDA_ALLOC", "PYTORCH_ALLOC") for name in given}  # its older name
    chosen = {name: value for name, value in wanted.items() if name not in known}
    if threads is not None:
        chosen["OMP_NUM_THREADS"] = str(threads)
    return chosen | (_NO_GPU if device == "cpu" else {})


def bind_network(address: str) -> None:
    """Makes this process's collectives use the interface of an address.

    Otherwise gloo resolves the host's name, which may give a loopback address. NCCL is bound only if the address is a
    loopback one: on a machine that runs alone, it would otherwise listen on every interface.
    """
    if interface := interface_of(address):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        if interface == "lo":
            os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)


def interface_of(address: str) -> str | None:
    """Returns the network interface that has this address, or None."""
    found = psutil.net_if_addrs().items()
    return next((name for name, its in found if any(one.address == address for one in its)), None)


def threads_here(sharing: int) -> int:
    """Returns the number of threads for one rank if ``sharing`` ranks share this machine's cores equally."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, sharing))
