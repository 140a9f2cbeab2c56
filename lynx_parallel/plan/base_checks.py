"""Checks that a campaign's settings, adapters and pictures fit the kind of its base. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.base_parts import BaseParts, base_parts
from lynx_parallel.inputs.manifest import Campaign, Shot
from lynx_parallel.inputs.model_config import transformer_config
from lynx_parallel.inputs.packaging import read_packed
from lynx_parallel.inputs.pipeline import ModelSpec
from lynx_parallel.inputs.weight_files import WeightFiles
from lynx_parallel.text import shown_path

_TWO_EXPERTS = "is for a base with two experts (Wan2.2 A14B)"


def base_fit_mistakes(campaign: Campaign, shots: Iterable[Shot], weights: WeightFiles) -> list[str]:
    """Returns one line for each setting, adapter or picture that the base does not take, or lacks.

    Args:
        weights: their base is on this machine. Adapters that are missing are not checked.

    Raises:
        CheckpointError: a configuration of the base cannot be read.
    """
    model = campaign.pipeline.model
    parts = base_parts(weights.base)
    lines = [] if parts.boundary_ratio else [*_of_two_experts(model)]
    if parts.encodes_image and model.adapters.id is not None:
        lines.append(
            f"model.adapters: {model.base} takes no ID adapter, because it sees the first frame's embedding instead: "
            "leave out resampler and id"
        )
    lines += _width_mistakes(model, weights)
    found: dict[str, str] = {}
    for shot in shots:
        for line in _shot_mistakes(shot, parts, model):
            found.setdefault(line, shot.name)
    return [*lines, *(f"{line} ({name})" for line, name in found.items())]


def _of_two_experts(model: ModelSpec) -> Iterator[str]:
    """Yields a line for each setting that only a base with two experts has."""
    given = {
        "model.transformer_2": model.transformer_2,
        "model.adapters_expert": model.adapters_expert,
        **{f"model.loras[{i}].expert": lora.expert for i, lora in enumerate(model.loras)},
    }
    for name, value in given.items():
        if value is not None:
            yield f"{name}: {value} {_TWO_EXPERTS}, {model.base} has one transformer"


def _shot_mistakes(shot: Shot, parts: BaseParts, model: ModelSpec) -> Iterator[str]:
    if not parts.boundary_ratio:
        for name in ("guidance_scale_2", "boundary_ratio"):
            if (value := getattr(shot.sampling, name)) is not None:
                yield f"sampling.{name}: {value:g} {_TWO_EXPERTS}, {model.base} has one transformer"
    if parts.takes_image and shot.start_image is None:
        yield f"start_image: missing: {model.base} begins every video with a picture: give one to each prompt or shot"
    if not parts.takes_image and shot.start_image is not None:
        yield f"start_image: {shown_path(shot.start_image)}: {model.base} takes no picture: use an I2V base"


def _width_mistakes(model: ModelSpec, weights: WeightFiles) -> Iterator[str]:
    """Yields a line about the adapters that were made for a model of another width."""
    config = transformer_config(weights)
    width = config["num_attention_heads"] * config["attention_head_dim"]
    wrong = {}
    for name, path in (("id", weights.id), ("ref", weights.ref)):
        if path is not None and path.is_file() and (found := _width(path)) not in (None, width):
            wrong[f"{name} ({shown_path(path)})"] = found
    if wrong:
        yield (
            f"model.adapters: {', '.join(wrong)}: made for a model of width {', '.join(map(str, {*wrong.values()}))}, "
            f"{model.base} has {width}: Lynx's published adapters fit 14B bases only"
        )


def _width(path: Path) -> int | None:
    """Returns the width of the model that an adapter was made for, or None if the file does not tell."""
    try:
        shapes = {key: one.shape for key, one in read_packed(path).items()}
    except CheckpointError:
        return None  # the rank that reads the file says so
    return next((shape[0] for key, shape in shapes.items() if "to_k_" in key and key.endswith("weight")), None)
