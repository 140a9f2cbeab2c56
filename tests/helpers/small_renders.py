"""Small renders of the demo model, for gangs of a few processes."""

from __future__ import annotations

from pathlib import Path

import torch

from lynx_parallel.demo.faces import LANDMARKS
from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.pipeline import LynxPipeline, ShotInputs
from tests.helpers.repository import REPOSITORY

FACES = REPOSITORY / "manifests" / "faces"


SIZES = {27: (48, 48, 9), 30: (80, 48, 5), 36: (64, 48, 9), 45: (80, 48, 9)}
"""Tokens → width, height, frames."""


def sampling(tokens: int) -> Sampling:
    width, height, frames = SIZES[tokens]
    return Sampling(width=width, height=height, num_frames=frames, num_inference_steps=3)


def load(demo: Path) -> LynxPipeline:
    files = {"resampler": "resampler", "id": "ip_layers", "ref": "ref_layers"}
    return LynxPipeline.from_pretrained(
        demo / "wan", {name: demo / "full" / f"{stem}.safetensors" for name, stem in files.items()}, dtype=torch.float32
    )


def prepare(pipeline: LynxPipeline, settings: Sampling) -> ShotInputs:
    person = pipeline.identify(
        settings,
        image=FACES / "astronaut.jpg",
        landmarks=LANDMARKS["astronaut"],
        embedding=FACES / "astronaut.safetensors",
    )
    return pipeline.prepare("A person at a desk", settings, person)
