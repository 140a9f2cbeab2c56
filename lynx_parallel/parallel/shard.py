"""Weight sharding: each rank of a sequence group keeps 1/P of the transformer, block by block."""

from __future__ import annotations

import gc
from functools import partial

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor.debug import _clear_sharding_prop_cache

from lynx_parallel.inputs.projections import is_projection
from lynx_parallel.model.projections import projection_units
from lynx_parallel.model.transformer import LynxTransformer

_METHODS = ("text_kv", "image_kv", "identity_kv", "reference_kv")
"""Methods that use a block's weights outside its forward."""


def shard(transformer: LynxTransformer, group: dist.ProcessGroup, *, keep_projections: bool = True) -> None:
    """Marks a transformer, still on the meta device, to keep 1/P of every parameter on each rank.

    A block's weights are gathered for its forward and freed after it. Kept projections are gathered separately, when
    they are called: a forward never needs them. The group's ranks must make the same calls in the same order: it is
    a ring × Ulysses group, not the whole gang, whose guidance ranks run different branches.

    Args:
        group: ranks that share one copy of the weights.
        keep_projections: as given to ``load_transformer``.
    """
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    # DTensor caches placements by the mesh's ranks alone. Those of an earlier gang name a group that is gone.
    _clear_sharding_prop_cache()
    mesh = DeviceMesh.from_group(group, device)
    # Projections that are borrowed from the file come and go whole, block by block: nothing of them is kept to shard.
    borrowed = set() if keep_projections else {p for n, p in transformer.named_parameters() if is_projection(n)}
    share = partial(fully_shard, mesh=mesh, reshard_after_forward=True, ignored_params=borrowed)
    for block in transformer.blocks:
        if keep_projections:
            for unit in projection_units(block):
                share(unit)
        share(block)
        # These methods are no forward, but need the block's norms gathered.
        for name in _METHODS:
            register_fsdp_forward_method(block, name)
    share(transformer)
    for name in (*_METHODS, "reference_features"):
        register_fsdp_forward_method(transformer, name)


def release() -> None:
    """Frees the weights of sharded transformers to which no reference is left.

    FSDP ties modules, hooks and parameters into cycles. Without this call, the weights stay in memory beside the next
    gang's until Python's collector runs by itself. Cutting the cycles by hand would depend on FSDP's private
    attributes, which change between versions of torch.
    """
    gc.collect()
