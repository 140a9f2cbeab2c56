"""Keys and shapes of Wan's transformer and of Lynx's adapter files at any size, written down from the layouts.

Nothing here asks the model's own classes, so that they can be held against it. Imports no torch.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Literal

Shapes = dict[str, tuple[int, ...]]
AdapterLayout = Literal["reference", "single-file"]

WAN_14B: dict[str, Any] = {
    "_class_name": "WanTransformer3DModel",
    "patch_size": [1, 2, 2],
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 13824,
    "num_layers": 40,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "image_dim": None,
    "added_kv_proj_dim": None,
    "rope_max_seq_len": 1024,
}
"""``transformer/config.json`` of Wan2.1-T2V-14B."""
UMT5_XXL = {
    "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
"""Sizes of Wan's text encoder, from its ``config.json``."""
TEXT_ENCODER_BYTES = 11_361_820_672
"""Of UMT5-XXL's encoder in bf16."""
LITE_ID_DIM = 2048
"""Size of Lynx lite's ID tokens; full's are as wide as the model."""
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I8": 1, "U8": 1}
"""Of safetensors' names of types."""


def dim_of(config: Mapping[str, Any]) -> int:
    """Channels of the transformer."""
    return config["num_attention_heads"] * config["attention_head_dim"]


def _linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def transformer_shapes(config: Mapping[str, Any]) -> Shapes:
    """Every key of the base transformer's files, diffusers layout."""
    dim, ffn, channels = dim_of(config), config["ffn_dim"], config["in_channels"]
    patch = tuple(config["patch_size"])
    embedder = "condition_embedder"
    shapes: Shapes = {
        "scale_shift_table": (1, 2, dim),
        "patch_embedding.weight": (dim, channels, *patch),
        "patch_embedding.bias": (dim,),
        **_linear(f"{embedder}.time_embedder.linear_1", dim, config["freq_dim"]),
        **_linear(f"{embedder}.time_embedder.linear_2", dim, dim),
        **_linear(f"{embedder}.time_proj", 6 * dim, dim),
        **_linear(f"{embedder}.text_embedder.linear_1", dim, config["text_dim"]),
        **_linear(f"{embedder}.text_embedder.linear_2", dim, dim),
        **_linear("proj_out", prod(patch) * config["out_channels"], dim),
    }
    for block in (f"blocks.{i}" for i in range(config["num_layers"])):
        shapes[f"{block}.scale_shift_table"] = (1, 6, dim)
        shapes |= {f"{block}.norm2.weight": (dim,), f"{block}.norm2.bias": (dim,)}
        for attention in (f"{block}.attn1", f"{block}.attn2"):
            for projection in ("to_q", "to_k", "to_v", "to_out.0"):
                shapes |= _linear(f"{attention}.{projection}", dim, dim)
            shapes |= {f"{attention}.norm_q.weight": (dim,), f"{attention}.norm_k.weight": (dim,)}
        shapes |= _linear(f"{block}.ffn.net.0.proj", ffn, dim) | _linear(f"{block}.ffn.net.2", dim, ffn)
    return shapes


def resampler_shapes(output_dim: int) -> Shapes:
    """Every key of ``resampler.safetensors``: depth 4, width 1280, 20 heads of 64, 16 queries."""
    width, queries, embedding = 1280, 16, 512
    shapes: Shapes = {
        "latents": (1, queries, width),
        **_linear("proj_in", width, embedding),
        **_linear("proj_out", output_dim, width),
        "norm_out.weight": (output_dim,),
        "norm_out.bias": (output_dim,),
    }
    for layer in (f"layers.{n}" for n in range(4)):
        for norm in (f"{layer}.0.norm1", f"{layer}.0.norm2", f"{layer}.1.0"):
            shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
        shapes |= {
            f"{layer}.0.to_q.weight": (width, width),
            f"{layer}.0.to_kv.weight": (2 * width, width),
            f"{layer}.0.to_out.weight": (width, width),
            f"{layer}.1.1.weight": (4 * width, width),
            f"{layer}.1.3.weight": (width, 4 * width),
        }
    return shapes


def id_shapes(config: Mapping[str, Any], variant: Literal["full", "lite"], layout: AdapterLayout) -> Shapes:
    """Every key of the ID layers' file: full in every block, biased, with registers; lite in every other block."""
    dim, full = dim_of(config), variant == "full"
    stride, id_dim = (1, dim) if full else (2, LITE_ID_DIM)
    shapes: Shapes = {}
    for number, block in enumerate(range(0, config["num_layers"], stride)):
        prefix = str(number) if layout == "reference" else f"blocks.{block}.cross_attn.ip_adapter"
        for kind in ("k", "v"):
            shapes[f"{prefix}.to_{kind}_ip.weight"] = (dim, id_dim)
            if full:
                shapes[f"{prefix}.to_{kind}_ip.bias"] = (dim,)
        if full:
            shapes[f"{prefix}.registers"] = (1, 16, id_dim)
    return shapes


def ref_shapes(config: Mapping[str, Any], layout: AdapterLayout) -> Shapes:
    """Every key of the reference layers' file (full only)."""
    dim = dim_of(config)
    shapes: Shapes = {}
    for block in range(config["num_layers"]):
        prefix = str(block) if layout == "reference" else f"blocks.{block}.self_attn.ref_adapter"
        shapes |= _linear(f"{prefix}.to_k_ref", dim, dim) | _linear(f"{prefix}.to_v_ref", dim, dim)
    return shapes


def model_shapes(config: Mapping[str, Any], variant: Literal["full", "lite"] = "full") -> Shapes:
    """State-dict keys of the transformer with Lynx's adapters in it; lite has no reference layers."""
    shapes = transformer_shapes(config)
    stride = 1 if variant == "full" else 2
    files = [(id_shapes(config, variant, "reference"), "id", stride)]
    if variant == "full":
        files.append((ref_shapes(config, "reference"), "ref", 1))
    for file, module, step in files:
        for key, shape in file.items():
            block, _, parameter = key.partition(".")
            shapes[f"blocks.{int(block) * step}.{module}_adapter.{parameter}"] = shape
    return shapes


def write_hollow(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> None:
    """A safetensors file with a true header and a body of zeros that takes no room on disk (a sparse file)."""
    write_hollow_tensors(path, {key: (dtype, shape) for key, shape in shapes.items()})


def write_hollow_tensors(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """As ``write_hollow``, with the type of each tensor."""
    header, end = {}, 0
    for key, (dtype, shape) in tensors.items():
        start, end = end, end + prod(shape) * ITEM_BYTES[dtype]
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def split_into_files(shapes: Shapes, dtype: str, limit: int) -> dict[str, Shapes]:
    """The keys dealt out over files of at most ``limit`` bytes, named as diffusers names them."""
    files: list[Shapes] = [{}]
    size = 0
    for key, shape in shapes.items():
        needed = prod(shape) * ITEM_BYTES[dtype]
        if files[-1] and size + needed > limit:
            files.append({})
            size = 0
        files[-1][key] = shape
        size += needed
    stem = "diffusion_pytorch_model"
    return {f"{stem}-{n:05}-of-{len(files):05}.safetensors": part for n, part in enumerate(files, start=1)}


def write_index(folder: Path, files: Mapping[str, Shapes], config: Mapping[str, Any]) -> None:
    """``config.json`` and the index of a transformer in several files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    index = {"metadata": {}, "weight_map": {key: name for name, part in files.items() for key in part}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
