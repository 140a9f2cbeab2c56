"""Adapter files of the true 14B shapes, without their bytes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.shapes import (
    LITE_ID_DIM,
    WAN_14B,
    Shapes,
    dim_of,
    id_shapes,
    ref_shapes,
    resampler_shapes,
    split_into_files,
    transformer_shapes,
    write_hollow,
    write_index,
)
from lynx_parallel.inputs.weight_files import WeightFiles
from tests.helpers.golden_cases import GOLDEN

RECORDED = GOLDEN / "checkpoint_shapes.json"


FULL_DIM = dim_of(WAN_14B)


SHARD_BYTES = 5 * 10**9


@dataclass(frozen=True)
class Adapters:
    """Shapes of one pairing's files; ``dtype`` is that of the real files, in safetensors' words."""

    resampler: Shapes
    id: Shapes
    ref: Shapes | None
    dtype: str


def derived() -> dict[str, Adapters]:
    """From the documented sizes."""
    full, lite = resampler_shapes(FULL_DIM), resampler_shapes(LITE_ID_DIM)
    pairings = {}
    for layout, dtype in (("reference", "BF16"), ("single-file", "F16")):
        id_full, id_lite = (id_shapes(WAN_14B, variant, layout) for variant in ("full", "lite"))  # type: ignore[arg-type]
        ref = ref_shapes(WAN_14B, layout)  # type: ignore[arg-type]
        pairings |= {
            f"full, {layout}": Adapters(full, id_full, ref, dtype),
            f"lite, {layout}": Adapters(lite, id_lite, None, dtype),
            f"lite ID and full ref, {layout}": Adapters(lite, id_lite, ref, dtype),
        }
    return pairings


def recorded() -> dict[str, Adapters]:
    """From the keys and shapes of the real files."""

    def tuples(shapes: dict[str, list[int]]) -> Shapes:
        return {key: tuple(shape) for key, shape in shapes.items()}

    files = json.loads(RECORDED.read_text())
    full, lite = files["lynx_full"], files["lynx_lite"]
    single = {name.partition("Lynx_")[2]: shapes for name, shapes in files["comfyui"].items()}
    resamplers = {"full": tuples(full["resampler.safetensors"]), "lite": tuples(lite["resampler.safetensors"])}
    pairings = {}
    for layout, dtype, id_full, id_lite, ref in (
        ("reference", "BF16", full["ip_layers.safetensors"], lite["ip_layers.safetensors"],
         full["ref_layers.safetensors"]),
        ("single-file", "F16", single["full_ip_layers_fp16.safetensors"], single["lite_ip_layers_fp16.safetensors"],
         single["full_ref_layers_fp16.safetensors"]),
    ):  # fmt: skip
        pairings |= {
            f"full, {layout}": Adapters(resamplers["full"], tuples(id_full), tuples(ref), dtype),
            f"lite, {layout}": Adapters(resamplers["lite"], tuples(id_lite), None, dtype),
            f"lite ID and full ref, {layout}": Adapters(resamplers["lite"], tuples(id_lite), tuples(ref), dtype),
        }
    return pairings


def write_base(folder: Path, dtype: str, config: dict[str, Any] = WAN_14B) -> Path:
    files = split_into_files(transformer_shapes(config), dtype, SHARD_BYTES)
    write_index(folder / "wan" / "transformer", files, config)
    for name, part in files.items():
        write_hollow(folder / "wan" / "transformer" / name, part, dtype)
    return folder / "wan"


def write_adapters(folder: Path, adapters: Adapters) -> WeightFiles:
    files = {"resampler": adapters.resampler, "id": adapters.id, "ref": adapters.ref}
    for name, shapes in files.items():
        if shapes is not None:
            write_hollow(folder / f"{name}.safetensors", shapes, "F32" if name == "resampler" else adapters.dtype)
    ref = folder / "ref.safetensors" if adapters.ref else None
    return WeightFiles(folder / "wan", folder / "resampler.safetensors", folder / "id.safetensors", ref)
