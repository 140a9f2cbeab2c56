"""Reads the headers of safetensors files: keys, types and shapes. Imports neither torch nor Ray."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.model_config import read_config
from lynx_parallel.inputs.special import refuse_special
from lynx_parallel.text import one_line

INDEX = "diffusion_pytorch_model.safetensors.index.json"
"""Index with the file of each key, for a model of several files."""
_MAX_HEADER_BYTES = 100 * 2**20  # safetensors' own limit


class Tensor(NamedTuple):
    """A tensor of a file, without its values. ``dtype`` is safetensors' name, for example ``BF16``."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file: its tensors by key, and its metadata."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Returns the header of a safetensors file. Reads nothing else.

    Raises:
        CheckpointError: missing, unreadable, GGUF, or no safetensors file.
    """
    refuse_special(path)
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if start.startswith(b"GGUF"):
                raise CheckpointError(f"{path}: GGUF is not supported: use a .safetensors file in fp16, bf16 or fp8")
            size = int.from_bytes(start, "little")
            if not 2 <= size <= min(_MAX_HEADER_BYTES, path.stat().st_size - 8):
                raise ValueError("its header is missing or damaged")
            header: dict[str, Any] = json.loads(file.read(size))
        metadata = {str(key): str(value) for key, value in (header.pop("__metadata__", None) or {}).items()}
        tensors = {key: Tensor(str(one["dtype"]), tuple(map(int, one["shape"]))) for key, one in header.items()}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise CheckpointError(f"{path}: not a readable safetensors file: {reason}") from None
    return Header(tensors, metadata)


def weight_files(folder: Path) -> list[Path]:
    """Returns the files of one model in diffusers layout: those of its index, or its only file.

    Raises:
        CheckpointError: an index that names no files.
    """
    index = folder / INDEX
    if index.exists():
        match read_config(index).get("weight_map"):
            case dict(names) if names and all(isinstance(name, str) for name in names.values()):
                return [folder / name for name in sorted(set(names.values()))]
        raise CheckpointError(f"{index}: weight_map: expected the file of each key")
    return [folder / "diffusion_pytorch_model.safetensors"]


def model_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter of a model in diffusers layout."""
    headers = [read_header(path) for path in weight_files(folder)]
    return {key: tensor.shape for header in headers for key, tensor in header.tensors.items()}
