"""Measures loading and preparing: the seconds of a run, a new prompt and a new subject before the first step."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_model import (
    TEXT_TOKENS,
    Sizes,
    median,
    random_inputs,
    random_text_encoder,
    random_vae,
    reset_peak,
    seconds_of,
    synchronize,
)
from benchmarks.shapes import dim_of, resampler_shapes
from lynx_parallel.model.adapters import Resampler
from lynx_parallel.model.transformer import LynxTransformer
from lynx_parallel.stages.latents import encode_reference

REFERENCE_SIZE = 256


def time_preparation(
    sizes: Sizes, device: torch.device, modes: Mapping[str, Callable[[], LynxTransformer]], repeats: int
) -> dict[str, Any]:
    """Measures the parts that do not depend on the projections once, and the other parts in each mode.

    Args:
        modes: by name (``kept``, ``borrowed``), a function that loads the transformer. Its seconds count as loading.
    """
    found: dict[str, Any] = {"encoders": _encoders(sizes, device, repeats)}
    reset_peak(device)
    for name, load in modes.items():
        began = time.perf_counter()
        transformer = load()
        synchronize(device)
        loading = time.perf_counter() - began
        found[name] = {"load": loading, **_projections(transformer, sizes, device, repeats)}
        del transformer
        gc.collect()
        reset_peak(device)
    for name in modes:
        found[name]["new prompt"] = found["encoders"]["text encoder"] + found[name]["text K/V"]
        parts = ("reference pass", "reference K/V", "identity K/V")
        encoders = found["encoders"]
        found[name]["new subject"] = (
            encoders["crop through the VAE"] + encoders["resampler"] + sum(found[name][part] for part in parts)
        )
    return found


def _encoders(sizes: Sizes, device: torch.device, repeats: int) -> dict[str, float]:
    """Median seconds of the text encoder, the VAE on a face crop, and the resampler."""
    time_of = partial(_median_of, device=device, repeats=repeats)
    encoder = random_text_encoder(sizes.text_encoder, device)
    ids = torch.randint(0, sizes.text_encoder["vocab_size"], (1, TEXT_TOKENS), device=device)
    found = {"text encoder": time_of(partial(encoder, ids, torch.ones_like(ids)))}
    del encoder
    reset_peak(device)
    vae = random_vae(sizes.vae, device)
    crop = np.zeros((REFERENCE_SIZE, REFERENCE_SIZE, 3), np.uint8)
    found["crop through the VAE"] = time_of(
        partial(encode_reference, vae, crop, size=REFERENCE_SIZE, mode="mode", seed=0)
    )
    del vae
    shapes = resampler_shapes(dim_of(sizes.transformer))
    with torch.device("meta"):
        resampler = Resampler.from_shapes(shapes)
    drawn = {key: torch.randn(shape, device=device, dtype=torch.bfloat16) * 0.02 for key, shape in shapes.items()}
    resampler.load_state_dict(drawn, assign=True)
    face = torch.randn(1, 1, 512, device=device, dtype=torch.bfloat16)
    found["resampler"] = time_of(partial(resampler, face))
    return found


def _projections(
    transformer: LynxTransformer, sizes: Sizes, device: torch.device, repeats: int
) -> dict[str, float]:  # fmt: skip
    """Median seconds of making static keys and values, and of the reference pass."""
    time_of = partial(_median_of, device=device, repeats=repeats)
    inputs = random_inputs(sizes.transformer, device)
    side = REFERENCE_SIZE // 8
    latents = torch.randn(1, 16, 1, side, side, device=device, dtype=torch.bfloat16)
    with torch.no_grad():
        text = transformer.text_kv(inputs["text"])
        features = transformer.reference_features(latents, text)
    return {
        "text K/V": time_of(partial(transformer.text_kv, inputs["text"])),
        "identity K/V": time_of(partial(transformer.identity_kv, inputs["identity"])),
        "reference pass": time_of(partial(transformer.reference_features, latents, text)),
        "reference K/V": time_of(partial(transformer.reference_kv, features)),
    }


def _median_of(work: Callable[[], Any], *, device: torch.device, repeats: int) -> float:
    return median(seconds_of(work, device, repeats=repeats))
