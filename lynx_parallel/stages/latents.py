"""Encodes and decodes with Wan's VAE, and draws the initial noise."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load

from lynx_parallel.errors import DamagedError, RenderError
from lynx_parallel.inputs.decode_memory import SPATIAL_STRIDE, TEMPORAL_STRIDE
from lynx_parallel.model.precision import Fp32Precision, convolutions_in
from lynx_parallel.output.checksums import CHECKSUM_KEY, metadata_of

LATENT_CHANNELS = 16


def latent_shape(width: int, height: int, num_frames: int) -> tuple[int, int, int, int, int]:
    """Returns [1, 16, T, h, w] of a video. Width and height are divisible by 16, num_frames = 4k+1."""
    frames = (num_frames - 1) // TEMPORAL_STRIDE + 1
    return 1, LATENT_CHANNELS, frames, height // SPATIAL_STRIDE, width // SPATIAL_STRIDE


def initial_noise(width: int, height: int, num_frames: int, seed: int) -> torch.Tensor:
    """Returns upstream's noise: fp32 normal draws of a CPU generator, on any device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(latent_shape(width, height, num_frames), generator=generator, dtype=torch.float32)


def _statistics(vae: AutoencoderKLWan) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (torch.tensor(values, device=vae.device, dtype=torch.float32).view(1, -1, 1, 1, 1)
                 for values in (vae.config.latents_mean, vae.config.latents_std))  # fmt: skip
    return mean, std


@torch.no_grad()
def encode_reference(
    vae: AutoencoderKLWan,
    crop_HW3: np.ndarray | None,
    *,
    size: int,
    mode: Literal["mode", "sample"],
    seed: int,
    precision: Fp32Precision = "ieee",
) -> torch.Tensor:
    """Encodes a face crop to normalised latents [1, 16, 1, size/8, size/8], fp32.

    Args:
        crop_HW3: uint8 RGB, [size, size, 3]; None for the unconditional reference, which is an
            all-zero picture *after* normalisation to [-1, 1], i.e. grey.
        mode: the posterior's mode, or a sample drawn with ``seed + 1``, as upstream does.
        seed: the shot's seed; unused for "mode".
        precision: of convolutions of an fp32 VAE on CUDA.
    """
    if crop_HW3 is None:
        pixels = torch.zeros(1, 3, 1, size, size, device=vae.device)
    else:
        rgb = torch.from_numpy(np.ascontiguousarray(crop_HW3)).to(vae.device, torch.float32)
        pixels = (rgb / 127.5 - 1).permute(2, 0, 1)[None, :, None]
    if mode == "mode":
        return encode_mode(vae, pixels, precision=precision)
    with convolutions_in(precision):
        posterior = vae.encode(pixels.to(vae.dtype)).latent_dist
    return _normalised(vae, posterior.sample(torch.Generator().manual_seed(seed + 1)))


@torch.no_grad()
def encode_mode(vae: AutoencoderKLWan, video_BCFHW: torch.Tensor, *, precision: Fp32Precision) -> torch.Tensor:
    """Encodes a video [1, 3, F, H, W] in [-1, 1] to the mode of its latents [1, 16, T, h, w], normalised, fp32."""
    with convolutions_in(precision):
        return _normalised(vae, vae.encode(video_BCFHW.to(vae.dtype)).latent_dist.mode())


def _normalised(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    mean, std = _statistics(vae)
    return (latents.float() - mean) / std


@torch.no_grad()
def decode(vae: AutoencoderKLWan, latents_BCThw: torch.Tensor, *, precision: Fp32Precision = "ieee") -> torch.Tensor:
    """Decodes normalised latents [1, 16, T, h, w] to a video [1, 3, F, H, W] in [-1, 1], fp32.

    Args:
        precision: of convolutions of an fp32 VAE on CUDA.
    """
    mean, std = _statistics(vae)
    latents = latents_BCThw.to(vae.device, torch.float32) * std + mean
    with convolutions_in(precision):
        return vae.decode(latents.to(vae.dtype), return_dict=False)[0].float()


def to_frames(video_BCFHW: torch.Tensor) -> np.ndarray:
    """Converts [1, 3, F, H, W] in [-1, 1] to uint8 [F, H, W, 3]."""
    levels = ((video_BCFHW[0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(1, 2, 3, 0).cpu().numpy()


def read_latents(path: Path, sha256: str | None) -> tuple[torch.Tensor, dict[str, Any]]:
    """Returns saved latents [1, 16, T, h, w], and size and sha256 of their file.

    Args:
        sha256: of the file by its sidecar; without it, the checksum in the file's header is compared.

    Raises:
        DamagedError: the file holds other bytes than were written.
        RenderError: the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RenderError(f"{path}: {error.strerror}") from None
    found = hashlib.sha256(data).hexdigest()
    if found != sha256 if sha256 else CHECKSUM_KEY not in (metadata_of(data) or {}):
        raise DamagedError(f"{path}: the latents are damaged: their checksum differs")
    return load(data)["latents"], {"size": len(data), "sha256": found}
