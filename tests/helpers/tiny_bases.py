"""Tiny bases of the other kinds: two experts, and videos that begin with a picture. Parts come from the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from lynx_parallel.demo import tiny
from lynx_parallel.demo.checkpoint import fill, write_json, write_tensors
from lynx_parallel.demo.faces import LANDMARKS
from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.inputs.weight_files import WeightFiles
from lynx_parallel.pipeline import LynxPipeline, ShotInputs
from lynx_parallel.subject.picture import read_picture
from tests.helpers.repository import REPOSITORY

FACES = REPOSITORY / "manifests" / "faces"
PROMPT = "A cat on a sofa"
Kind = Literal["T2V", "T2V-A14B", "I2V", "I2V-A14B"]
IMAGE_DIM = 32
BOUNDARY = {"T2V-A14B": 0.875, "I2V-A14B": 0.9}
CLIP = {
    "hidden_size": IMAGE_DIM, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 224, "patch_size": 14, "projection_dim": 16,
}  # fmt: skip
"""As CLIP ViT-H/14, with 257 tokens."""


def write_base(folder: Path, demo: Path, kind: Kind) -> Path:
    """Writes a tiny base of this kind into a folder that does not exist yet. Returns it."""
    folder.mkdir(parents=True)
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        (folder / part).symlink_to(demo / "wan" / part)
    index: dict[str, Any] = dict(tiny.MODEL_INDEX)
    config: dict[str, Any] = dict(tiny.TRANSFORMER)
    if kind.startswith("I2V"):
        config |= {"in_channels": 36}
        index |= {"_class_name": "WanImageToVideoPipeline", "image_encoder": [None, None]}
        index |= {"image_processor": [None, None]}
    if kind == "I2V":
        config |= {"image_dim": IMAGE_DIM, "added_kv_proj_dim": tiny.DIM}
        index |= {"image_encoder": ["transformers", "CLIPVisionModel"]}
        index |= {"image_processor": ["transformers", "CLIPImageProcessor"]}
        write_image_encoder(folder)
    parts = ["transformer"]
    if kind in BOUNDARY:
        parts.append("transformer_2")
        index |= {"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": BOUNDARY[kind]}
    for part in parts:
        write_transformer(folder / part, config)
    write_json(folder / "model_index.json", index)
    return folder


def write_transformer(folder: Path, config: dict[str, Any]) -> None:
    """Writes a transformer with random weights, which differ by the folder's name."""
    with torch.device("meta"):
        model = WanTransformer3DModel(**{k: v for k, v in config.items() if not k.startswith("_")})
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    write_json(folder / "config.json", config)
    write_tensors(folder / "diffusion_pytorch_model.safetensors", fill(folder.name, shapes, tiny.RULES["transformer"]))


def write_image_encoder(base: Path) -> None:
    torch.manual_seed(0)
    encoder = CLIPVisionModel(CLIPVisionConfig(**CLIP))
    encoder.save_pretrained(base / "image_encoder")
    CLIPImageProcessorPil().save_pretrained(base / "image_processor")


def adapter_files(base: Path, demo: Path) -> dict[str, Path]:
    """Returns the adapters of a base by name. Wan2.1 I2V takes no ID."""
    files = {"resampler": "resampler", "id": "ip_layers", "ref": "ref_layers"}
    if base.name == "I2V":
        files = {"ref": "ref_layers"}
    return {name: demo / "full" / f"{file}.safetensors" for name, file in files.items()}


def weights_of(base: Path, demo: Path) -> WeightFiles:
    files = adapter_files(base, demo)
    return WeightFiles(base, files.get("resampler"), files.get("id"), files["ref"])


def load_tiny(base: Path, demo: Path, **settings: Any) -> LynxPipeline:
    """Returns the pipeline of a base that ``write_base`` made, in a folder with its kind's name."""
    return LynxPipeline.from_files(weights_of(base, demo), dtype=torch.float32, **settings)


def first_frame(width: int = 80, height: int = 48) -> np.ndarray:
    return np.asarray(Image.fromarray(read_picture(FACES / "drawn.png")).resize((width, height)))


def prepare_tiny(pipeline: LynxPipeline, base: Path, sampling: Sampling) -> ShotInputs:
    person = pipeline.identify(
        sampling,
        image=FACES / "astronaut.jpg",
        landmarks=LANDMARKS["astronaut"],
        embedding=FACES / "astronaut.safetensors",
    )
    first = first_frame(sampling.width, sampling.height) if base.name.startswith("I2V") else None
    return pipeline.prepare(PROMPT, sampling, person, start_image=first)
