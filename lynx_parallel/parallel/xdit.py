"""xDiT's unified sequence parallelism: the only module that imports xfuser.

A gang is a world of its own: ``join`` builds the process groups of a layout, ``leave`` takes them
down again, weights untouched.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F

from lynx_parallel.inputs.guidance import BranchName
from lynx_parallel.inputs.layout import Layout
from lynx_parallel.model.attention import Attention, LocalTokens, sdpa
from lynx_parallel.stages.denoise import LocalGuidance

_BACKEND = "lynx-padded"
"""Name under which the padding-aware attention is registered with xfuser."""


class Membership(NamedTuple):
    """A rank's place in a gang: how tokens and guidance branches are split over the gang.

    Attributes:
        groups: process group of each axis; a group may have one rank.
    """

    tokens: UspTokens
    guidance: SplitGuidance
    groups: dict[str, dist.ProcessGroup]


class SplitGuidance(LocalGuidance):
    """Splits guidance branches over the guidance axis. Every rank gets all velocities.

    Branch j runs on guidance rank j mod degree.
    """

    def __init__(self, layout: Layout, xfuser: SimpleNamespace):
        self.degree = layout.guidance
        group = xfuser.distributed.get_dp_group()
        self.index, self.group = group.rank_in_group, group.device_group

    def mine(self, names: Sequence[BranchName]) -> list[BranchName]:
        return list(names[self.index :: self.degree])

    def share(
        self, velocities: dict[BranchName, torch.Tensor], names: Sequence[BranchName], like: torch.Tensor
    ) -> dict[BranchName, torch.Tensor]:
        if self.degree == 1:
            return velocities
        most = -(-len(names) // self.degree)
        # A rank with fewer branches than others, or none in this phase, sends blanks beside its own.
        blanks = [torch.zeros_like(like)] * (most - len(velocities))
        mine = torch.stack([*velocities.values(), *blanks])
        dealt = [torch.empty_like(mine) for _ in range(self.degree)]
        dist.all_gather(dealt, mine, group=self.group)
        return {name: dealt[j % self.degree][j // self.degree] for j, name in enumerate(names)}


class UspTokens(LocalTokens):
    """Splits the token axis over a gang's ring × Ulysses ranks, in contiguous shards, zero-padded at the end.

    Rank r of the sequence group holds tokens r·L … (r+1)·L − 1 with L = ⌈N / ranks⌉. Padded keys are
    masked exactly: xfuser's own Wan wrapper lets them take part.
    """

    def __init__(self, layout: Layout, xfuser: SimpleNamespace, kernel: Attention = sdpa):
        super().__init__(kernel)
        self.layout = layout
        self._usp = xfuser.USP
        group = xfuser.distributed.get_sp_group()
        self.rank, self.group = group.rank_in_group, group.device_group
        self._ring_rank = xfuser.distributed.get_ring_parallel_rank()
        xfuser.attention_functions[_BACKEND] = self._padded_attention

    def split(self, x_BNC: torch.Tensor) -> torch.Tensor:
        shard = self.layout.shard(x_BNC.shape[1])
        start = self.rank * shard
        mine = x_BNC[:, start : start + shard]
        if (missing := shard - mine.shape[1]) > 0:
            mine = F.pad(mine, (0, 0) * (mine.ndim - 2) + (0, missing))
        return mine.clone(memory_format=torch.contiguous_format)  # a view would keep all tokens alive

    def gather(self, x_BLC: torch.Tensor, length: int) -> torch.Tensor:
        shards = [torch.empty_like(x_BLC) for _ in range(self.layout.sequence)]
        dist.all_gather(shards, x_BLC.contiguous(), group=self.group)
        return torch.cat(shards, dim=1)[:, :length]

    def self_attention(
        self, q_BLHD: torch.Tensor, k_BLHD: torch.Tensor, v_BLHD: torch.Tensor, length: int
    ) -> torch.Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q_BLHD, k_BLHD, v_BLHD))
        out = self._usp(q, k, v, backend=_BACKEND, attention_kwargs={"length": length, "ring_step": 0})
        return out.transpose(1, 2)

    def _padded_attention(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, attention_kwargs: dict[str, int], **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Runs attention for USP, [B, H, tokens, D]: once in Ulysses, at every step of a ring. Drops padded keys."""
        # At step s of the ring this rank sees the keys that rank (r − s) mod R started with.
        source = (self._ring_rank - attention_kwargs["ring_step"]) % self.layout.ring
        attention_kwargs["ring_step"] += 1
        valid = min(max(attention_kwargs["length"] - source * k.shape[2], 0), k.shape[2])
        q, k, v = (t.transpose(1, 2) for t in (q, k[:, :, :valid], v[:, :, :valid]))
        out, lse = self.kernel(q, k, v, self.layout.ring > 1)
        return out.transpose(1, 2), lse


def join(
    layout: Layout,
    *,
    rank: int,
    store: dist.Store,
    device: torch.device,
    transformer_config: Mapping[str, Any],
    kernel: Attention = sdpa,
    timeout: timedelta = timedelta(minutes=10),
) -> Membership:
    """Makes this process rank ``rank`` of a gang; returns its place in it.

    Blocks until all ``layout.size`` ranks have joined: gloo on the CPU, NCCL on CUDA.

    Args:
        store: shared by the gang's ranks and by no other gang.
        transformer_config: diffusers' configuration (heads, head size, patch size, channels).
        kernel: attention kernel, of ``model.attention.choose_kernel``.
        timeout: of every collective; a rank that raises leaves its peers waiting this long.
    """
    xfuser = _import_xfuser(device.type)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=layout.size, timeout=timeout)
    xfuser.distributed.init_distributed_environment(
        world_size=layout.size, rank=rank, local_rank=device.index or 0, backend=backend
    )
    xfuser.distributed.initialize_model_parallel(
        # xDiT's own guidance axis stops at two branches; as replicas, the axis may have three.
        data_parallel_degree=layout.guidance,
        sequence_parallel_degree=layout.sequence,
        ring_degree=layout.ring,
        ulysses_degree=layout.ulysses,
        backend=backend,
    )
    # USP reads its switches from the runtime state. The kernel is ours, but the state insists on one it knows.
    config = xfuser.xFuserArgs(
        model="",
        data_parallel_degree=layout.guidance,
        ring_degree=layout.ring,
        ulysses_degree=layout.ulysses,
        attention_backend="sdpa_flash",
    ).create_config()[0]
    pipeline = SimpleNamespace(transformer=SimpleNamespace(config=SimpleNamespace(**transformer_config)))
    xfuser.distributed.initialize_runtime_state(pipeline, config)
    return Membership(UspTokens(layout, xfuser, kernel), SplitGuidance(layout, xfuser), _axis_groups(xfuser))


def leave() -> None:
    """Takes this process out of its gang. Does nothing if it is in none."""
    if dist.is_initialized():
        from xfuser.core.distributed import parallel_state

        parallel_state.destroy_model_parallel()
        parallel_state.destroy_distributed_environment()


def _axis_groups(xfuser: SimpleNamespace) -> dict[str, dist.ProcessGroup]:
    sequence = xfuser.distributed.get_sp_group()
    return {
        "sequence": sequence.device_group,
        "ulysses": sequence.ulysses_group,
        "ring": sequence.ring_group,
        "guidance": xfuser.distributed.get_dp_group().device_group,
    }


@cache
def _import_xfuser(device_type: str) -> SimpleNamespace:
    """Imports xfuser for ranks on this type of device and names what we use of it.

    xfuser decides by the build of torch and by the machine. We decide by the rank's device, which stays the same for
    the life of the process: on the CPU, xfuser sees no GPU, whatever is installed.
    """
    os.environ.setdefault("XDIT_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("LOG_LEVEL", "warning")
    _stand_in_for_triton()
    if device_type == "cpu":
        with _hidden_gpus():
            _answer_for_cpu()
            found = _names_of_xfuser()
            from xfuser.model_executor.layers import usp
            from yunchang.globals import PROCESS_GROUP
        usp.PROCESS_GROUP = PROCESS_GROUP
    else:
        found = _names_of_xfuser()
    for name in ("xfuser", "yunchang"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return found


def _names_of_xfuser() -> SimpleNamespace:
    from xfuser.config.args import xFuserArgs
    from xfuser.core import distributed
    from xfuser.core.distributed.attention_backend import ATTENTION_FUNCTION_REGISTRY
    from xfuser.model_executor.layers.usp import USP

    return SimpleNamespace(
        USP=USP, xFuserArgs=xFuserArgs, attention_functions=ATTENTION_FUNCTION_REGISTRY, distributed=distributed
    )


@contextmanager
def _hidden_gpus() -> Iterator[None]:
    """Hides this machine's GPUs for a while: on import, xfuser asks each one it finds for its properties."""
    seen = torch.cuda.is_available, torch.cuda.device_count
    torch.cuda.is_available, torch.cuda.device_count = (lambda: False), (lambda: 0)
    try:
        yield
    finally:
        torch.cuda.is_available, torch.cuda.device_count = seen


def _answer_for_cpu() -> None:
    """Lets xfuser 0.7 import, and run on the CPU, with any build of torch.

    Its ``envs`` assumes a GPU if torch is built for CUDA, and raises if torch is built for the CPU. This function
    replaces both answers before the package's own ``__init__`` runs. It replaces nothing else of xfuser.
    """
    spec = importlib.util.find_spec("xfuser")
    assert spec is not None
    assert spec.origin is not None
    stub = ModuleType("xfuser")
    stub.__path__ = [str(Path(spec.origin).parent)]
    sys.modules["xfuser"] = stub
    try:
        from xfuser import envs
    finally:
        del sys.modules["xfuser"]
    envs._is_cuda = envs._is_hip = lambda: False
    envs.get_device_version = lambda: None
    envs.get_torch_distributed_backend = lambda: "gloo"
    envs.PACKAGES_CHECKER.packages_info["has_long_ctx_attn"] = True


def _stand_in_for_triton() -> None:
    """Lets xfuser import without triton: one module, whose attention we do not use, imports it unguarded."""
    if importlib.util.find_spec("triton") is None:
        name = "xfuser.core.sparge_attention.block_mask"
        stand_in = ModuleType(name)
        stand_in.get_block_map_meansim = None  # type: ignore[attr-defined]
        sys.modules[name] = stand_in
