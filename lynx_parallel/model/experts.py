"""The transformers of a base: one, or Wan2.2's two experts, of which the device may hold one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from lynx_parallel.model.transformer import LynxTransformer

TRAIN_TIMESTEPS = 1000


class Experts:
    """One transformer, or two with the timestep between them.

    Attributes:
        moves: how often a transformer was moved to the device.

    Args:
        transformers: one, or the expert of high noise and that of low noise.
        boundary_ratio: with two, the first denoises from timestep 1000 · ``boundary_ratio`` on, as in diffusers.
        device: where only the transformer in use is. All of them are given on the CPU then. None leaves them where they
            are.
    """

    def __init__(
        self,
        transformers: Sequence[LynxTransformer],
        boundary_ratio: float | None = None,
        device: torch.device | None = None,
    ):
        self.transformers = tuple(transformers)
        self.boundary_ratio = boundary_ratio
        self.moves = 0
        self._device = device
        self._in_use: LynxTransformer | None = None
        self._waiting: dict[LynxTransformer, dict[str, torch.Tensor]] = {}
        for transformer in self.transformers if device is not None else ():
            if not is_sharded(transformer):
                # Borrowed projections are on the meta device. They go where they are used.
                self._waiting[transformer] = {n: t.data for n, t in _tensors(transformer).items() if not t.is_meta}

    def __iter__(self) -> Iterator[LynxTransformer]:
        return iter(self.transformers)

    @property
    def one_at_a_time(self) -> bool:
        """Whether only the transformer in use is on the device."""
        return self._device is not None and len(self.transformers) > 1

    @property
    def have_reference(self) -> bool:
        """Whether any transformer has a reference adapter."""
        return any(transformer.has_reference for transformer in self)

    def of_steps(self, timesteps: Iterable[Any], boundary_ratio: float | None = None) -> list[int]:
        """Returns the transformer of each step, as ``index``."""
        return [self.index(float(timestep), boundary_ratio) for timestep in timesteps]

    def index(self, timestep: float, boundary_ratio: float | None = None) -> int:
        """Returns which transformer denoises at a timestep: 0, or 1 for the expert of low noise.

        Args:
            boundary_ratio: instead of the base's own.
        """
        ratio = self.boundary_ratio if boundary_ratio is None else boundary_ratio
        return int(len(self.transformers) > 1 and ratio is not None and timestep < ratio * TRAIN_TIMESTEPS)

    def use(self, index: int) -> LynxTransformer:
        """Returns a transformer, on the device."""
        wanted = self.transformers[index]
        if self._device is not None and wanted is not self._in_use:
            if self._in_use is not None:
                self._put(self._in_use, torch.device("cpu"))
            self._put(wanted, self._device)
            self._in_use = wanted
            self.moves += 1
        return wanted

    def _put(self, transformer: LynxTransformer, device: torch.device) -> None:
        """Puts a transformer on the device, or back on the CPU. Weights do not change, so nothing is copied back."""
        if transformer not in self._waiting:
            move(transformer, device)
            return
        for name, waiting in self._waiting[transformer].items():
            _set(transformer, name, waiting.to(device))


def is_sharded(transformer: nn.Module) -> bool:
    """Returns whether ranks share the weights of a transformer."""
    return any(isinstance(parameter, DTensor) for parameter in transformer.parameters())


def _tensors(transformer: nn.Module) -> dict[str, torch.Tensor]:
    """Returns all weights and tables by name."""
    return {**dict(transformer.named_parameters()), **dict(transformer.named_buffers())}


def _set(transformer: nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = transformer.get_submodule(path)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[leaf] = tensor


def move(transformer: nn.Module, device: torch.device) -> None:
    """Moves a sharded transformer. FSDP overrides ``_apply``, which ``nn.Module.to`` calls too."""
    transformer._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(device))
