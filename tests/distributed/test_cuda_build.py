"""Ranks on the CPU where torch is built for CUDA: they never touch it, with GPUs in the machine or without.

The build is simulated: CI installs torch for the CPU alone.
"""

from __future__ import annotations

from typing import Any

import torch

from lynx_parallel.inputs.layout import Layout
from lynx_parallel.model.attention import sdpa
from tests.helpers.processes import run_gang

HEADS, HEAD_DIM, TOKENS = 2, 8, 7
GPUS = [0, 8]
"""In the machine of rank 0 and of rank 1."""
LAYOUTS = [Layout(1, 1, 2), Layout(1, 2, 1), Layout(2, 1, 1)]


def _qkv() -> list[torch.Tensor]:
    return list(torch.randn(3, 1, TOKENS, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(0)))


def pretend_cuda_build(gpus: int) -> None:
    """Makes torch look built for CUDA 13 on a machine with this many GPUs; any use of CUDA raises."""

    def refuse(*args: Any) -> None:
        raise RuntimeError("Found no NVIDIA driver on your system.")

    torch.version.cuda = "13.0"
    torch.cuda.is_available, torch.cuda.device_count = (lambda: gpus > 0), (lambda: gpus)
    torch.cuda._lazy_init = refuse  # the first thing that every use of CUDA does, but for:
    torch.cuda.set_device = lambda device: refuse(device)


def attend(rank: int, store: Any) -> list[torch.Tensor]:
    gpus = GPUS[rank]
    pretend_cuda_build(gpus)
    from torch.distributed import PrefixStore

    from lynx_parallel.parallel import xdit

    outputs = []
    for layout in LAYOUTS:
        member = xdit.join(
            layout, rank=rank, store=PrefixStore(str(layout), store), device=torch.device("cpu"),
            transformer_config={
                "num_attention_heads": HEADS, "attention_head_dim": HEAD_DIM, "patch_size": (1, 2, 2), "in_channels": 16
            },
        )  # fmt: skip
        q, k, v = (member.tokens.split(t.flatten(2)).unflatten(2, (HEADS, -1)) for t in _qkv())
        out = member.tokens.gather(member.tokens.self_attention(q, k, v, TOKENS).flatten(2), TOKENS)
        names = member.guidance.mine(["c", "u"])
        branches = member.guidance.share(dict.fromkeys(names, out), ["c", "u"], out)
        outputs.append(branches["u"])
        xdit.leave()
    assert torch.cuda.is_available() == (gpus > 0)
    return outputs


def test_a_rank_on_the_cpu_never_touches_cuda() -> None:
    serial = sdpa(*_qkv(), False)[0].flatten(2)  # type: ignore[call-arg]
    for outputs in run_gang(2, attend, fresh=True):
        for output in outputs:
            torch.testing.assert_close(output, serial)
