"""Weight sharding: each rank of a sequence group keeps 1/P of the transformer, block by block."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor.debug import _clear_sharding_prop_cache

from lynx_parallel.model.projections import is_projection
from lynx_parallel.model.transformer import LynxTransformer


def shard(transformer: LynxTransformer, group: dist.ProcessGroup, *, keep_projections: bool = True) -> None:
    """Marks a transformer, still on the meta device, to keep 1/P of every parameter on each rank.

    A block's weights are gathered for its forward and let go after it. The group's ranks must make the same calls
    in the same order: it is a ring × Ulysses group, not the whole gang, whose guidance ranks run different branches.

    Args:
        group: ranks that share one copy of the weights.
        keep_projections: as given to ``load_transformer``.
    """
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    # DTensor remembers placements by the mesh's ranks alone; those of an earlier gang name a group that is gone.
    _clear_sharding_prop_cache()
    mesh = DeviceMesh.from_group(group, device)
    # The static projections are called from outside the forward and need the weights whole as well.
    # Projections that are borrowed from the file come and go whole, block by block: nothing of them is kept to shard.
    borrowed = set() if keep_projections else {p for n, p in transformer.named_parameters() if is_projection(n)}
    for block in transformer.blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=borrowed)
        for name in ("text_kv", "identity_kv", "reference_kv"):
            register_fsdp_forward_method(block, name)
    fully_shard(transformer, mesh=mesh, reshard_after_forward=True, ignored_params=borrowed)
    for name in ("text_kv", "identity_kv", "reference_kv", "reference_features"):
        register_fsdp_forward_method(transformer, name)
