"""Recognises how the tensors of a safetensors file are packed: as floats, or as small numbers with scales.

Layouts of scales: ``<layer>.scale_weight`` (fp8 files of Kijai and Comfy-Org), ``<layer>.weight_scale`` (newer ComfyUI
files), ``<layer>.weight._data`` with ``<layer>.weight._scale`` (quanto). A scaled file that is read without its scales
is silently wrong, so a packed tensor without a scale is refused. Imports neither torch nor Ray.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple

from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.tensor_headers import Header, read_header
from lynx_parallel.text import one_line

FLOATS = ("F16", "BF16", "F32", "F64")
FP8 = ("F8_E4M3", "F8_E5M2")
_SCALES = ("scale_weight", "weight_scale")
# Of activations, or marks of the format. Loading dequantises, so they have no use.
_NO_PARAMETERS = ("scaled_fp8", "input_scale", "output_scale", "scale_input", "comfy_quant")
_UNSUPPORTED = {
    "weight_scale_2": "nvfp4", "qweight": "SVDQuant or GPTQ", "qzeros": "GPTQ or AWQ", "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
}  # fmt: skip


class Packed(NamedTuple):
    """A tensor of a file.

    Attributes:
        key: of its data.
        shape: of the whole tensor.
        dtype: of its data, safetensors' name.
        scale: key of the scale by which its data is multiplied; empty without one.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    scale: str = ""


def read_packed(path: Path) -> dict[str, Packed]:
    """Returns the tensors of a file by their name, without scales and marks. Reads the header alone.

    Raises:
        CheckpointError: unreadable, an unsupported format, a type that is neither float nor scaled.
    """
    header = read_header(path)
    packed: dict[str, Packed] = {}
    used: set[str] = set()
    for key, (dtype, shape) in header.tensors.items():
        if key.rpartition(".")[2] in _NO_PARAMETERS:
            continue
        for sign, name in _UNSUPPORTED.items():
            if key.rpartition(".")[2] == sign:
                raise CheckpointError(f"{path}: {one_line(key)}: quantised as {name}, which is not supported")
        if _is_scale(key):
            continue
        name, scale = key, _scale_of(header, key)
        if key.endswith("._data"):
            name = key.removesuffix("._data")
        if scale:
            _check_scale(path, header, scale, shape)
            used.add(scale)
        elif dtype not in (*FLOATS, *FP8) or (dtype in FP8 and "scaled_fp8" in header.tensors):
            wanted = f"expected numbers of type {', '.join(FLOATS)}" if dtype not in FP8 else "its scale is missing"
            raise CheckpointError(f"{path}: {one_line(key)}: {wanted}, found {dtype}")
        if name in packed:
            raise CheckpointError(f"{path}: {one_line(key)}: the same tensor as {one_line(packed[name].key)}")
        packed[name] = Packed(key, shape, dtype, scale)
    for key in header.tensors:
        if _is_scale(key) and key not in used:
            raise CheckpointError(f"{path}: {one_line(key)}: a scale without its tensor")
    return packed


def describe(packed: dict[str, Packed]) -> str:
    """Returns how most values of a file are packed, for example ``fp8 scaled`` or ``bf16``."""
    sizes: dict[str, int] = {}
    for tensor in packed.values():
        kind = tensor.dtype.lower().replace("f8_e", "fp8_e").replace("f16", "fp16").replace("bfp16", "bf16")
        kind = {"f32": "fp32", "f64": "fp64", "i8": "int8"}.get(kind, kind) + (" scaled" if tensor.scale else "")
        sizes[kind] = sizes.get(kind, 0) + prod(tensor.shape)
    return max(sizes, key=lambda kind: sizes[kind], default="empty")


def packagings(files: Mapping[str, Path | None]) -> dict[str, str]:
    """Returns how each of these files is packed, without those that cannot be read."""
    described = {}
    for name, path in files.items():
        with contextlib.suppress(CheckpointError):
            if path is not None:
                described[name] = describe(read_packed(path))
    return described


def _is_scale(key: str) -> bool:
    return key.endswith(("._scale", *(f".{name}" for name in _SCALES)))


def _scale_of(header: Header, key: str) -> str:
    """Returns the key of a tensor's scale, or nothing."""
    if key.endswith("._data"):
        return _present(header, key.removesuffix("_data") + "_scale")
    if not key.endswith(".weight") or header.tensors[key].dtype in FLOATS:
        return ""
    layer = key.removesuffix("weight")
    return next((found for name in _SCALES if (found := _present(header, layer + name))), "")


def _present(header: Header, key: str) -> str:
    return key if key in header.tensors else ""


def _check_scale(path: Path, header: Header, scale: str, shape: tuple[int, ...]) -> None:
    """Accepts one scale for the tensor, or one for each row."""
    found = header.tensors[scale]
    if found.dtype not in FLOATS or prod(found.shape) not in (1, shape[0] if shape else 1):
        raise CheckpointError(
            f"{path}: {one_line(scale)}: {found.dtype} {list(found.shape)}, expected one float, or one for each of "
            f"{shape[0] if shape else 1} rows: this kind of scale is not supported"
        )
