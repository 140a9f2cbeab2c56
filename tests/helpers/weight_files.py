"""The demo's weight files."""

from __future__ import annotations

from pathlib import Path

from lynx_parallel.inputs.weight_files import WeightFiles


def files(demo: Path) -> WeightFiles:
    full = demo / "full"
    return WeightFiles(
        demo / "wan",
        full / "resampler.safetensors",
        full / "ip_layers.safetensors",
        full / "ref_layers.safetensors",
    )
