"""The files of ``benchmarks.gpu``: a pipeline with random weights at true shapes, and a campaign of one shot."""

from __future__ import annotations

import json
import os
import shutil
import time
from math import prod
from pathlib import Path

import huggingface_hub.constants
import torch
import yaml
from safetensors.torch import save_file
from transformers import UMT5Config, UMT5EncoderModel

from benchmarks.gpu_model import Sizes, random_vae
from benchmarks.shapes import (
    Shapes,
    dim_of,
    id_shapes,
    ref_shapes,
    resampler_shapes,
    split_into_files,
    transformer_shapes,
    write_index,
)
from lynx_parallel.demo.checkpoint import ensure_demo
from lynx_parallel.demo.faces import LANDMARKS
from lynx_parallel.inputs.shipped import shipped_dir

STEPS = 4
SPARE_BYTES = 2_000_000_000
"""Disk for the VAE, the text encoder, the video and the caches."""


class NoRoom(Exception):
    """The files do not fit on the disk or into the time."""


def write_pipeline(folder: Path, sizes: Sizes, device: torch.device, until: float) -> Path:
    """Writes a whole pipeline of random weights. Returns the pipeline file.

    The text encoder is as wide as the real one but has two layers and the demo's vocabulary. Every other part has
    its true shapes.

    Args:
        until: of ``time.monotonic``. The writing is given up if it would end later.

    Raises:
        NoRoom: the disk or the time does not suffice.
    """
    config = sizes.transformer
    base = folder / "wan" / "transformer"
    parts = split_into_files(transformer_shapes(config), "BF16", sizes.file_bytes)
    files = {base / name: part for name, part in parts.items()} | {
        folder / "resampler.safetensors": resampler_shapes(dim_of(config)),
        folder / "id.safetensors": id_shapes(config, "full", "reference"),
        folder / "ref.safetensors": ref_shapes(config, "reference"),
    }
    left = sum(2 * prod(shape) for part in files.values() for shape in part.values())
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < left + SPARE_BYTES:
        raise NoRoom(f"{folder}: {left / 1e9:.1f} GB of files, {free / 1e9:.1f} GB free; --folder names another place")
    write_index(base, parts, config)
    began, written = time.monotonic(), 0
    for path, shapes in files.items():
        _write(path, shapes, device)
        size = path.stat().st_size
        written, left = written + size, left - size
        rate = written / (time.monotonic() - began)
        if time.monotonic() + left / rate > until:
            speed = f"{left / 1e9:.1f} GB left to write at {rate / 1e9:.2f} GB/s"
            raise NoRoom(f"{folder}: {speed} take more than the time left; --folder names another place")
    _write_small_parts(folder / "wan", sizes)
    return _write_pipeline_file(folder)


def _write(path: Path, shapes: Shapes, device: torch.device) -> None:
    save_file(
        {
            key: torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, 0.02).cpu()
            for key, shape in shapes.items()
        },
        path,
    )


def _write_small_parts(base: Path, sizes: Sizes) -> None:
    """Writes a VAE and a text encoder of these sizes, and the demo's tokenizer and scheduler."""
    random_vae(sizes.vae, torch.device("cpu")).save_pretrained(base / "vae")
    text = UMT5Config(**{key: value for key, value in sizes.stored_text_encoder.items() if key != "dtype"})
    UMT5EncoderModel(text).to(torch.bfloat16).save_pretrained(base / "text_encoder")
    demo = ensure_demo() / "wan"
    for name in ("tokenizer", "scheduler"):
        shutil.copytree(demo / name, base / name)
    shutil.copy(demo / "model_index.json", base)


def _write_pipeline_file(folder: Path) -> Path:
    path = folder / "pipeline.yaml"
    adapters = {name: f"./{name}.safetensors" for name in ("resampler", "id", "ref")}
    path.write_text(
        yaml.safe_dump({"version": 1, "model": {"base": "./wan", "adapters": adapters, "dtype": "bfloat16"}})
    )
    return path


def stay_offline() -> None:
    """Makes this process and its children download nothing, so that only installed weights are used."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    huggingface_hub.constants.HF_HUB_OFFLINE = True  # the variable was read when the hub's library was imported


def write_manifest(folder: Path, pipeline: str, video: tuple[int, int, int]) -> Path:
    """Writes a campaign of one shot with few steps; returns the manifest.

    The subject's landmarks and embedding are given, so that no face models are needed. The embedding is made up.

    Args:
        pipeline: a path, or the bare name of a shipped pipeline.
        video: width, height and frames.
    """
    faces = shipped_dir("manifests") / "faces"
    width, height, frames = video
    subject = {
        "image": str(faces / "astronaut.jpg"),
        "embedding": str(faces / "astronaut.safetensors"),
        "landmarks": [list(point) for point in LANDMARKS["astronaut"]],
    }
    manifest = {
        "version": 1,
        "pipeline": pipeline,
        "output": str(folder / "renders"),
        "sampling": {"width": width, "height": height, "num_frames": frames, "num_inference_steps": STEPS},
        "subjects": {"astronaut": subject},
        "prompts": {"beach": "A person walks along a beach at sunrise, the wind in the hair."},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "gpu.yaml"
    path.write_text(json.dumps(manifest, indent=2))  # JSON is YAML
    return path
