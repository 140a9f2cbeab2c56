"""Checks LoRA files against the base before any work, and reports what they change. Imports neither torch nor Ray."""

from __future__ import annotations

from lynx_parallel.inputs.lora import Lora, read_lora
from lynx_parallel.inputs.notices import Notice
from lynx_parallel.inputs.packaging import read_packed
from lynx_parallel.inputs.tensor_headers import model_shapes, read_header
from lynx_parallel.inputs.wan_names import parameter_name
from lynx_parallel.inputs.weight_files import LoraFile, WeightFiles
from lynx_parallel.text import one_line, shown_path


def read_loras(weights: WeightFiles) -> list[Lora]:
    """Returns the LoRAs of a pipeline, read for its base. Reads headers alone.

    Raises:
        CheckpointError: a file does not fit.
    """
    if not weights.loras:
        return []
    model = transformer_shapes(weights)  # those of both experts, if there are two
    return [read_lora(lora.path, read_header(lora.path), model) for lora in weights.loras]


def transformer_shapes(weights: WeightFiles) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter of a transformer, see ``WeightFiles.of``, under diffusers' names."""
    if weights.transformer is None:
        return model_shapes(weights.transformer_folder)
    named = ((parameter_name(key), one.shape) for key, one in read_packed(weights.transformer).items())
    return {name: shape for name, shape in named if name is not None}


def lora_lines(loras: list[Lora], weights: WeightFiles) -> list[str]:
    """Returns a line for each LoRA that was read: its weight, and how much of it is applied."""
    pairs = zip(loras, weights.loras, strict=False)
    return [f"LoRA {lora.path.name}, weight {file.weight:g}{_on(file)}: {lora}" for lora, file in pairs]


def _on(file: LoraFile) -> str:
    return f", {file.expert.replace('_', ' ')} only" if file.expert else ""


def lora_notices(loras: list[Lora]) -> list[Notice]:
    """Returns a warning for each reason for which keys of a LoRA are not applied."""
    message = "parts of a LoRA are not applied"
    return [
        Notice("lora-skipped", message, f"{shown_path(lora.path)}: {len(keys)} keys: {reason}: {_first(keys)}")
        for lora in loras
        for reason, keys in lora.skipped.items()
    ]


def _first(keys: list[str]) -> str:
    more = f" and {len(keys) - 2} more" if len(keys) > 2 else ""
    return ", ".join(map(one_line, keys[:2])) + more
