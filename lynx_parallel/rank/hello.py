"""The description of a rank, which is the first thing that it reports."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress

import ray
import torch

import lynx_parallel
from lynx_parallel.model.attention import Kernel
from lynx_parallel.rank.messages import Hello


def describe_rank(device: torch.device, kernel: Callable[[], Kernel]) -> Hello:
    """Returns a rank's description. A GPU or a kernel that does not work raises nothing here; the self-check finds it.

    Args:
        kernel: returns the attention kernel.
    """
    name, node, gpu = "cpu", "", ""
    if ray.is_initialized():
        context = ray.get_runtime_context()
        node = context.get_node_id()
        gpu = next(iter(context.get_accelerator_ids()["GPU"]), "")
    attention = "none"
    warnings: tuple[str, ...] = ()
    with suppress(Exception):
        if device.type == "cuda":
            name = "cuda"
            name = torch.cuda.get_device_name(0)
        attention, _, warnings = kernel()
    version = lynx_parallel.__version__
    return Hello(os.getpid(), socket.gethostname(), name, attention, version, node, gpu, warnings)
