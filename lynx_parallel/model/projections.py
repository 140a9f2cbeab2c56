"""The projections behind static keys and values: kept on the device, or borrowed from the file for a moment.

At 14B they are 12.6 of about 37 GB, and idle while denoising: their results are static.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

Kind = Literal["text", "identity", "reference"]

_MODULES: dict[Kind, tuple[str, ...]] = {
    "text": ("attn2.to_k.", "attn2.to_v."),
    "identity": ("id_adapter.",),
    "reference": ("ref_adapter.",),
}


def is_projection(key: str) -> bool:
    """Returns whether a state-dict key of ``LynxTransformer`` belongs to a projection of static keys or values."""
    parts = key.split(".", 2)
    modules = tuple(name for names in _MODULES.values() for name in names)
    return len(parts) == 3 and parts[0] == "blocks" and parts[2].startswith(modules)


def projection_units(block: nn.Module) -> list[list[nn.Module]]:
    """Returns a block's projections, one list per kind. The modules of a list run together."""
    modules = dict(block.named_modules())
    units = [[modules[n] for name in names if (n := name.rstrip(".")) in modules] for names in _MODULES.values()]
    return [unit for unit in units if unit]


class KeptProjections:
    """Projections live on the device like all other weights."""

    @contextmanager
    def borrowed(self, index: int, block: nn.Module, kind: Kind) -> Iterator[None]:
        """Makes the projections of one kind of block ``index`` usable within the block."""
        yield


class BorrowedProjections(KeptProjections):
    """Projections live in the weights file; each is read for its block, used, and let go.

    Args:
        readers: by state-dict key, what reads that tensor to its dtype and device.
    """

    def __init__(self, readers: Mapping[str, Callable[[], torch.Tensor]]):
        self._readers = readers

    @contextmanager
    def borrowed(self, index: int, block: nn.Module, kind: Kind) -> Iterator[None]:
        prefix = f"blocks.{index}."
        names = [n for n, _ in block.named_parameters() if n.startswith(_MODULES[kind])]
        before = {name: block.get_parameter(name) for name in names}
        for name in names:
            _put(block, name, nn.Parameter(self._readers[prefix + name](), requires_grad=False))
        try:
            yield
        finally:
            for name, empty in before.items():
                _put(block, name, empty)


def _put(block: nn.Module, name: str, parameter: nn.Parameter) -> None:
    module, _, leaf = name.rpartition(".")
    setattr(block.get_submodule(module), leaf, parameter)
