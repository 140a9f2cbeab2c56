"""One transformer in every packaging of a single file, written by the specification of each format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.helpers.lora_files import LINEARS, State, wan

FP8_MAX = 448.0
"""Largest number of float8_e4m3fn."""
Packaging = Callable[[Mapping[str, torch.Tensor]], tuple[State, State]]
"""From diffusers' names to the content of a file, and the parameters that it stands for."""


def wan_name(parameter: str) -> str:
    """Wan's name of a parameter that has diffusers' name."""
    if parameter == "scale_shift_table":
        return "head.modulation"
    if parameter.endswith(".scale_shift_table"):
        return parameter.replace("scale_shift_table", "modulation")
    module, _, kind = parameter.rpartition(".")
    return f"{wan(module)}.{kind}"


def _is_linear(parameter: str) -> bool:
    return parameter.startswith("blocks.") and parameter.endswith(tuple(f".{name}.weight" for name in LINEARS))


def _cast(dtype: torch.dtype, prefix: str = "") -> Packaging:
    def write(state: Mapping[str, torch.Tensor]) -> tuple[State, State]:
        file = {prefix + wan_name(key): tensor.to(dtype) for key, tensor in state.items()}
        return file, {key: tensor.to(dtype).float() for key, tensor in state.items()}

    return write


def _fp8_plain(state: Mapping[str, torch.Tensor]) -> tuple[State, State]:
    file: State = {}
    meant: State = {}
    for key, tensor in state.items():
        kept = tensor.to(torch.float8_e4m3fn) if _is_linear(key) else tensor.to(torch.float16)
        file[wan_name(key)], meant[key] = kept, kept.float()
    return file, meant


def _fp8_scaled(scale_key: str, *, per_row: bool = False, marks: bool = False) -> Packaging:
    def write(state: Mapping[str, torch.Tensor]) -> tuple[State, State]:
        file: State = {} if marks else {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
        meant: State = {}
        for key, tensor in state.items():
            name = wan_name(key)
            if not _is_linear(key):
                file[name], meant[key] = tensor.clone(), tensor
                continue
            largest = tensor.abs().amax(dim=1, keepdim=True) if per_row else tensor.abs().max()
            scale = (largest / FP8_MAX).float().reshape((-1, 1) if per_row else (1,))
            data = (tensor / scale).to(torch.float8_e4m3fn)
            layer = name.removesuffix("weight")
            file |= {name: data, layer + scale_key: scale}
            if marks:
                file[layer + "comfy_quant"] = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
                file[layer + "input_scale"] = torch.tensor(1.0)
            meant[key] = data.float() * scale
        return file, meant

    return write


def _quanto_int8(state: Mapping[str, torch.Tensor]) -> tuple[State, State]:
    file: State = {}
    meant: State = {}
    for key, tensor in state.items():
        name = wan_name(key)
        if not _is_linear(key):
            file[name], meant[key] = tensor.bfloat16(), tensor.bfloat16().float()
            continue
        scale = (tensor.abs().amax(dim=1, keepdim=True) / 127).bfloat16()
        data = (tensor / scale.float()).round().clamp(-127, 127).to(torch.int8)
        layer = name.removesuffix("weight")
        file |= {f"{name}._data": data, f"{name}._scale": scale}
        file |= {f"{layer}input_scale": torch.ones(()), f"{layer}output_scale": torch.ones(())}
        meant[key] = data.float() * scale.float()
    return file, meant


PACKAGINGS: dict[str, Packaging] = {
    "fp32": _cast(torch.float32),
    "fp16": _cast(torch.float16),
    "bf16 with a prefix": _cast(torch.bfloat16, "model.diffusion_model."),
    "fp8": _fp8_plain,
    "fp8 scaled, Kijai": _fp8_scaled("scale_weight"),
    "fp8 scaled, ComfyUI": _fp8_scaled("weight_scale", marks=True),
    "fp8 scaled by row": _fp8_scaled("weight_scale", per_row=True, marks=True),
    "int8, quanto": _quanto_int8,
}
ROUNDING = {
    "fp32": 0.0, "fp16": 2**-11, "bf16 with a prefix": 2**-8, "fp8": 0.08, "fp8 scaled, Kijai": 0.07,
    "fp8 scaled, ComfyUI": 0.07, "fp8 scaled by row": 0.07, "int8, quanto": 0.02,
}  # fmt: skip
"""Largest relative difference (of the norms) of a linear layer's weight to the unpacked one."""


def write(path: Path, state: State) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path, metadata={"format": "pt"})
    return path
