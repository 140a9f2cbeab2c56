"""The recordings of the reference implementation, for whichever test holds something to them.

They lie beside the repository, in `../shared/golden`, with a README of their own. Where they are missing,
tests marked `requires_golden` are skipped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"
BASE = GOLDEN / "wan_tiny"

requires_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the recordings (../shared/golden) are not beside this checkout"
)

SAMPLING = (
    "prompt",
    "negative_prompt",
    "seed",
    "width",
    "height",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
    "guidance_scale_i",
    "ip_scale",
    "ref_scale",
)


@dataclass(frozen=True)
class Case:
    """One recorded generation."""

    name: str
    folder: Path
    base: Path
    """The tiny Wan in diffusers layout."""
    settings: dict[str, Any]
    """`case.json`."""
    crop: np.ndarray
    """`aligned_face.png`: [256, 256, 3], uint8 RGB."""
    adapters: dict[str, Path]
    """`resampler`, `ip_layers` and, unless lite, `ref_layers`: files in the reference layout."""
    expected: dict[str, Tensor]
    """`expected.safetensors`; its `landmarks` and `face_embedding` are inputs."""

    @property
    def sampling(self) -> dict[str, Any]:
        """The settings by which a video is made, without those that describe the recording."""
        return {name: self.settings[name] for name in SAMPLING}


def case_names() -> tuple[str, ...]:
    """The recorded cases. Written down, so that tests are collected, then skipped, where there are none."""
    return ("full_a", "full_b", "lite_a", "mixed_a")


def load_case(name: str) -> Case:
    """Reads a case; its tensors are fresh, and may be changed."""
    folder = GOLDEN / "cases" / name
    with Image.open(folder / "aligned_face.png") as picture:
        crop = np.array(picture.convert("RGB"))
    return Case(
        name=name,
        folder=folder,
        base=BASE,
        settings=json.loads((folder / "case.json").read_text()),
        crop=crop,
        adapters={file.stem: file for file in sorted((folder / "adapters").glob("*.safetensors"))},
        expected=load_file(folder / "expected.safetensors"),
    )


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual - expected‖₂ / ‖expected‖₂, in fp64; shapes must agree."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    difference = (actual.double() - expected.double()).norm()
    return (difference / expected.double().norm()).item()
