"""Tiny bases of the other kinds: two experts, and videos that begin with a picture. Parts come from the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import WanTransformer3DModel
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from lynx_parallel.demo import tiny
from lynx_parallel.demo.checkpoint import fill, write_json, write_tensors

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
    CLIPImageProcessor().save_pretrained(base / "image_processor")
