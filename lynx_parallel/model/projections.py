"""The projections that make static keys and values. They stay on the device, or are read from the file on use.

At 14B they are 12.6 of about 37 GB, and idle while denoising: their results are static.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from lynx_parallel.inputs.projections import PROJECTIONS, ProjectionKind


def projection_units(block: nn.Module) -> list[list[nn.Module]]:
    """Returns a block's projections, one list per kind. The modules of a list run together."""
    modules = dict(block.named_modules())
    units = [[modules[n] for name in names if (n := name.rstrip(".")) in modules] for names in PROJECTIONS.values()]
    return [unit for unit in units if unit]


class KeptProjections:
    """Projections stay on the device like all other weights.

    Attributes:
        without_loras: whether projections that are read from the file are those of the base alone.
    """

    without_loras = False

    @contextmanager
    def borrowed(self, index: int, block: nn.Module, kind: ProjectionKind) -> Iterator[None]:
        """Makes the projections of one kind of block ``index`` usable within the block."""
        yield


class BorrowedProjections(KeptProjections):
    """Projections stay in the weights file. Each is read for its block, used, and freed.

    Args:
        readers: by state-dict key, a function that reads that tensor to its dtype and device.
        plain: the same without LoRAs.
    """

    def __init__(
        self, readers: Mapping[str, Callable[[], torch.Tensor]], plain: Mapping[str, Callable[[], torch.Tensor]]
    ):
        self._readers, self._plain = readers, plain

    @contextmanager
    def borrowed(self, index: int, block: nn.Module, kind: ProjectionKind) -> Iterator[None]:
        prefix, readers = f"blocks.{index}.", self._plain if self.without_loras else self._readers
        names = [n for n, _ in block.named_parameters() if n.startswith(PROJECTIONS[kind])]
        before = {name: block.get_parameter(name) for name in names}
        for name in names:
            _put(block, name, nn.Parameter(readers[prefix + name](), requires_grad=False))
        try:
            yield
        finally:
            for name, empty in before.items():
                _put(block, name, empty)


def _put(block: nn.Module, name: str, parameter: nn.Parameter) -> None:
    module, _, leaf = name.rpartition(".")
    setattr(block.get_submodule(module), leaf, parameter)
