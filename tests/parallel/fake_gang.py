"""One rank of a gang whose other ranks do not exist: torch's fake process group, and a list of what is sent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Collective(NamedTuple):
    """One collective call.

    Attributes:
        name: of the operator, such as ``allgather_``.
        tensors: all tensors given to it: first what it writes (where it writes any), then what it sends.
    """

    name: str
    tensors: list[torch.Tensor]


class Collectives(TorchDispatchMode):
    """Records every collective that is called within it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Collective] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            self.calls.append(Collective(func.name().partition("::")[2], tensors))
        return func(*args, **(kwargs or {}))


@contextmanager
def fake_group(ranks: int, rank: int = 0) -> Iterator[dist.ProcessGroup]:
    """The world of one rank. What the others would send is left to chance."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    try:
        assert dist.group.WORLD is not None
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()
