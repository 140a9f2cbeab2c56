"""Reads safetensors files: their tensors, and each tensor in its dtype and on its device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.tensor import DTensor

from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.packaging import read_packed
from lynx_parallel.inputs.special import refuse_special
from lynx_parallel.inputs.tensor_headers import weight_files
from lynx_parallel.inputs.wan_names import parameter_name
from lynx_parallel.inputs.weight_files import WeightFiles
from lynx_parallel.text import one_line

Shapes = dict[str, tuple[int, ...]]


class Source(NamedTuple):
    """File and key of a parameter.

    Attributes:
        scale: key of the scale of a quantised parameter, see ``inputs.packaging``.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    scale: str = ""


def read_sources(path: Path) -> dict[str, Source]:
    """Returns the source of every tensor of a safetensors file, by its name. Reads the header alone.

    Raises:
        CheckpointError: the file is missing, unreadable, no safetensors file, or packed in an unsupported way.
    """
    packed = read_packed(path)
    open_file(path, mapped=False)  # safetensors checks more of the header
    return {name: Source(path, one.key, one.shape, one.scale) for name, one in packed.items()}


def read_shapes(path: Path) -> Shapes:
    """Returns the shape of every tensor of a safetensors file. Errors as in ``read_sources``."""
    return {name: source.shape for name, source in read_sources(path).items()}


def base_sources(folder: Path) -> dict[str, Source]:
    """Returns every parameter of a model in diffusers layout, with its source."""
    sources: dict[str, Source] = {}
    for path in weight_files(folder):
        merge(sources, read_sources(path))
    return sources


def single_file_sources(path: Path) -> dict[str, Source]:
    """Returns every parameter of a transformer in one file, under diffusers' names. The file may have Wan's names.

    Raises:
        CheckpointError: as ``read_sources``; two keys of one parameter.
    """
    sources: dict[str, Source] = {}
    for key, source in read_sources(path).items():
        if (target := parameter_name(key)) is not None:
            merge(sources, {target: source})
    return sources


def transformer_sources(weights: WeightFiles) -> dict[str, Source]:
    """Returns every parameter of a transformer: of the single file, of the converted copy, or of the base.

    A machine that does not see the copy reads the base: the values are the same. LoRAs are added to the base's own
    values, before these are rounded.
    """
    if weights.transformer is not None:
        return single_file_sources(weights.transformer)
    copy = None if weights.loras else weights.converted
    return base_sources(copy if copy is not None and copy.is_dir() else weights.transformer_folder)


def merge(sources: dict[str, Source], more: Mapping[str, Source]) -> None:
    """Adds to ``sources``. No file may replace the parameter of another."""
    for target, source in more.items():
        if (first := sources.setdefault(target, source)) is not source:
            raise CheckpointError(
                f"{source.path}: {one_line(source.key)}: fills the same parameter as "
                f"{one_line(first.key)} of {first.path}"
            )


def check_rank(path: Path, key: str, shape: tuple[int, ...], rank: int) -> None:
    """Refuses a tensor of another number of dimensions, or without any numbers."""
    if len(shape) != rank or 0 in shape:
        raise CheckpointError(f"{path}: {key}: expected {rank} dimensions, none of size 0, found shape {list(shape)}")


@dataclass
class Loaded:
    """How much of the transformers' weights this process has loaded, in bytes of its own share.

    Attributes:
        read: loaded so far.
        to_read: all that is to be loaded.
    """

    read: int = 0
    to_read: int = 0


LOADED = Loaded()
"""Counts for ``Rank.progress``, which another thread of the process reads."""


def open_file(path: Path, device: str = "cpu", *, mapped: bool = True) -> Any:
    """Opens a file to read single tensors.

    Args:
        mapped: whether to map it into memory, so that ranks share its pages. A file that is larger than the memory
            cannot be mapped, and is read instead.
    """
    refuse_special(path)
    try:
        if mapped:
            with suppress(RuntimeError):
                return safe_open(path, framework="pt", device=device, backend="mmap")
        return safe_open(path, framework="pt", device=device, backend="pread")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError, MemoryError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {one_line(error)}") from None


def tensors(path: Path, device: torch.device | str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields every key of a file with its tensor, one at a time."""
    with open_file(path, str(device)) as file:
        for key in file.keys():
            yield key, file.get_tensor(key)


def read_tensor(
    file: Any,
    key: str,
    dtype: torch.dtype,
    parameter: torch.Tensor | None = None,
    *,
    scale: str = "",
    change: Callable[[torch.Tensor, slice], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Reads one tensor of a file. Of a sharded parameter, it reads only the rows that this rank keeps.

    Args:
        scale: key of the scale by which the tensor is multiplied, in fp32.
        change: called with what is read, and with the rows that this is of the whole tensor. Its result is kept.
    """
    if not isinstance(parameter, DTensor):
        return _rows(file, key, slice(0, None), scale, change).to(dtype)
    rows, ranks = parameter.shape[0], parameter.device_mesh.size()
    chunk = -(-rows // ranks)  # as fully_shard cuts: the last ranks may get fewer rows, or none
    start = min(parameter.device_mesh.get_local_rank() * chunk, rows)
    stop = min(start + chunk, rows)
    if start < stop:
        local = _rows(file, key, slice(start, stop), scale, change).to(dtype).contiguous()
    else:  # a file that is not mapped refuses an empty slice
        local = torch.empty(0, *parameter.shape[1:], dtype=dtype, device=parameter.device_mesh.device_type)
    return DTensor.from_local(
        local, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )


def _rows(
    file: Any, key: str, rows: slice, scale: str, change: Callable[[torch.Tensor, slice], torch.Tensor] | None
) -> torch.Tensor:
    tensor = file.get_tensor(key) if rows == slice(0, None) else file.get_slice(key)[rows]
    if scale:
        factor = file.get_tensor(scale).to(torch.float32).flatten()
        factor = factor if len(factor) == 1 else factor[rows]
        tensor = tensor.to(torch.float32) * factor.reshape(-1, *[1] * (tensor.ndim - 1))
    return change(tensor, rows) if change else tensor


def stored_as(path: Path, dtype: torch.dtype) -> bool:
    """Returns whether most of a file's tensors have this type. It is then mapped, and all ranks share its pages.

    Others are read tensor by tensor: mapped pages would stay beside their converted copies.
    """
    name = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    with open_file(path) as file:
        types = [file.get_slice(key).get_dtype() for key in file.keys()]
    return 2 * types.count(name) > len(types)
