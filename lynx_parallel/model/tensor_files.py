"""Reads safetensors files: their tensors, and each tensor in its dtype and on its device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.tensor import DTensor

from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.model_config import read_config
from lynx_parallel.inputs.special import refuse_special
from lynx_parallel.text import one_line

Shapes = dict[str, tuple[int, ...]]
# Others would be converted without a word: quantised weights need scales, whole numbers are no weights.
_DTYPES = ("F16", "BF16", "F32", "F64")
INDEX = "diffusion_pytorch_model.safetensors.index.json"
"""Index with the file of each key, for a model of several files."""


class Source(NamedTuple):
    """File and key of a parameter."""

    path: Path
    key: str
    shape: tuple[int, ...]


def weight_files(folder: Path) -> list[Path]:
    """Returns the files of one model in diffusers layout: those of its index, or its only file."""
    index = folder / INDEX
    if index.exists():
        match read_config(index).get("weight_map"):
            case dict(names) if names and all(isinstance(name, str) for name in names.values()):
                return [folder / name for name in sorted(set(names.values()))]
        raise CheckpointError(f"{index}: weight_map: expected the file of each key")
    return [folder / "diffusion_pytorch_model.safetensors"]


def read_shapes(path: Path) -> Shapes:
    """Returns the shape of every key of a safetensors file. Reads the header alone.

    Raises:
        CheckpointError: the file is missing, unreadable, no safetensors file, or holds other than floats.
    """
    shapes = {}
    with open_file(path) as file:
        for key in file.keys():
            try:
                tensor = file.get_slice(key)
                shapes[key], dtype = tuple(tensor.get_shape()), tensor.get_dtype()
            except Exception as error:  # SafetensorError, and TypeError for kinds of number it does not know
                raise CheckpointError(f"{path}: {one_line(key)}: cannot be read: {one_line(error)}") from None
            if dtype not in _DTYPES:
                raise CheckpointError(
                    f"{path}: {one_line(key)}: expected numbers of type {', '.join(_DTYPES)}, found {dtype}"
                )
    return shapes


def base_sources(folder: Path) -> dict[str, Source]:
    """Returns every parameter of a model in diffusers layout, with its source."""
    sources: dict[str, Source] = {}
    for path in weight_files(folder):
        merge(sources, {key: Source(path, key, shape) for key, shape in read_shapes(path).items()})
    return sources


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


def open_file(path: Path, device: str = "cpu", *, mapped: bool = True) -> Any:
    """Opens a file to read single tensors. It is not mapped, so reading leaves no page behind."""
    refuse_special(path)
    try:
        return safe_open(path, framework="pt", device=device, backend="mmap" if mapped else "pread")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError, MemoryError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {one_line(error)}") from None


def tensors(path: Path, device: torch.device | str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields every key of a file with its tensor, one at a time."""
    with open_file(path, str(device)) as file:
        for key in file.keys():
            yield key, file.get_tensor(key)


def read_tensor(file: Any, key: str, dtype: torch.dtype, parameter: torch.Tensor | None = None) -> torch.Tensor:
    """Reads one tensor of a file. Of a sharded parameter, it reads only the rows that this rank keeps."""
    if not isinstance(parameter, DTensor):
        return file.get_tensor(key).to(dtype)
    rows, ranks = parameter.shape[0], parameter.device_mesh.size()
    chunk = -(-rows // ranks)  # as fully_shard cuts: the last ranks may get fewer rows, or none
    start = min(parameter.device_mesh.get_local_rank() * chunk, rows)
    stop = min(start + chunk, rows)
    if start < stop:
        local = file.get_slice(key)[start:stop].to(dtype).contiguous()
    else:  # a file that is not mapped refuses an empty slice
        local = torch.empty(0, *parameter.shape[1:], dtype=dtype, device=parameter.device_mesh.device_type)
    return DTensor.from_local(
        local, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )


def stored_as(path: Path, dtype: torch.dtype) -> bool:
    """Returns whether most of a file's tensors have this type. It is then mapped, and all ranks share its pages.

    Others are read tensor by tensor: mapped pages would stay beside their converted copies.
    """
    name = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    with open_file(path) as file:
        types = [file.get_slice(key).get_dtype() for key in file.keys()]
    return 2 * types.count(name) > len(types)
