"""Adds LoRAs to the transformer's parameters while these are read, in fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.lora import Change, read_lora
from lynx_parallel.inputs.tensor_headers import read_header
from lynx_parallel.inputs.weight_files import LoraFile
from lynx_parallel.model.tensor_files import open_file

Reader = Callable[[torch.Tensor | None], torch.Tensor]
"""Reads a parameter. Given the parameter of a sharded model, it reads only the rows that this rank keeps."""


class Loras:
    """The changes of several LoRA files, by parameter. Files are added in their order.

    Args:
        files: with the weight of each.
        model: shape of each parameter of the transformer.
        device: where the changes are computed.

    Raises:
        CheckpointError: a file does not fit, see ``inputs.lora.read_lora``.
    """

    def __init__(self, files: Sequence[LoraFile], model: Mapping[str, tuple[int, ...]], device: torch.device | str):
        self._changes: dict[str, list[tuple[Any, Change, float]]] = {}
        for one in files:
            lora = read_lora(one.path, read_header(one.path), model)
            file = open_file(one.path, str(device), mapped=False)
            for change in lora.changes:
                self._changes.setdefault(change.target, []).append((file, change, one.weight))

    def __contains__(self, target: str) -> bool:
        return target in self._changes

    def add_to(self, target: str, tensor: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns some rows of a parameter with all changes, in fp32.

        W + weight · (alpha / rank) · up · down, or W + weight · difference.

        Args:
            rows: of the whole parameter, which ``tensor`` holds.
        """
        changed = tensor.to(torch.float32)
        for file, change, weight in self._changes[target]:
            if change.diff:
                delta = file.get_slice(change.diff)[rows].to(torch.float32)
            else:
                down = file.get_tensor(change.down).to(torch.float32)
                up = file.get_slice(change.up)[rows].to(torch.float32)
                scale = change.scale
                if change.alpha:
                    scale = float(file.get_tensor(change.alpha)) / down.shape[0]
                delta = scale * (up.flatten(1) @ down.flatten(1))
            changed = changed + weight * delta.reshape(tensor.shape)
        if not changed.isfinite().all():
            raise CheckpointError(f"{target}: a LoRA makes it infinite or NaN: the file is damaged")
        return changed


class MergedLoras:
    """Parameters that LoRAs have changed, and how to read each of them with and without.

    Args:
        readers: by state-dict key: the reader with the LoRAs, and the reader of the base alone.
    """

    def __init__(self, readers: Mapping[str, tuple[Reader, Reader]]):
        self._readers = readers

    @contextmanager
    def switched_off(self, transformer: nn.Module) -> Iterator[None]:
        """Gives the parameters the values of the base alone within the block. Reads each of them twice."""
        parameters = dict(transformer.named_parameters())
        held = {target: parameters[target] for target in self._readers if not parameters[target].is_meta}
        self._fill(held, without=True)
        try:
            yield
        finally:
            self._fill(held, without=False)

    @torch.no_grad()
    def _fill(self, parameters: Mapping[str, torch.Tensor], *, without: bool) -> None:
        for target, parameter in parameters.items():
            _local(parameter).copy_(_local(self._readers[target][without](parameter)))


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def change_of(loras: Loras, target: str) -> Callable[[torch.Tensor, slice], torch.Tensor] | None:
    """Returns the function that adds the LoRAs to rows of a parameter, or None if they leave it unchanged."""
    return partial(loras.add_to, target) if target in loras else None
