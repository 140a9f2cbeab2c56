"""The picture with which the video of an I2V base begins: its latents, its mask, and its CLIP embedding."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from PIL import Image

from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.decode_memory import TEMPORAL_STRIDE
from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.model.precision import Fp32Precision
from lynx_parallel.stages.latents import LATENT_CHANNELS, encode_mode


def fit(picture_HW3: np.ndarray, width: int, height: int) -> np.ndarray:
    """Returns a picture, uint8 RGB, scaled to cover ``width`` × ``height`` and cut to it in the middle."""
    rows, columns = picture_HW3.shape[:2]
    if (columns, rows) == (width, height):
        return picture_HW3
    scale = max(width / columns, height / rows)
    box_width, box_height = width / scale, height / scale
    left, top = (columns - box_width) / 2, (rows - box_height) / 2
    whole = Image.fromarray(picture_HW3)
    box = (left, top, left + box_width, top + box_height)
    return np.asarray(whole.resize((width, height), Image.Resampling.LANCZOS, box))


class FirstFrames:
    """Makes the inputs of first frames for one base. Keeps the embedding of the last picture.

    Args:
        base: model folder in diffusers layout.
        config: of the transformer.
        precision: as in ``encode_first_frame``.
    """

    def __init__(
        self, base: Path, config: Any, vae: AutoencoderKLWan, device: torch.device, precision: Fp32Precision = "ieee"
    ):
        self._base, self._vae, self._device, self._precision = base, vae, device, precision
        self.needed = config.in_channels > LATENT_CHANNELS
        """Whether the base begins a video with a picture."""
        self._encodes = config.image_dim is not None
        self._last: tuple[str, torch.Tensor] | None = None

    def inputs(self, picture_HW3: np.ndarray | None, sampling: Sampling, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Returns the fields ``start`` and ``image_embeds`` of a shot's inputs, as far as the base has them.

        Args:
            picture_HW3: uint8 RGB of any size.
            dtype: of the transformer.

        Raises:
            ValueError: a picture is missing, or the base takes none.
        """
        if (picture_HW3 is not None) != self.needed:
            raise ValueError(
                "this base begins with a picture: give start_image" if self.needed else "this base takes no start_image"
            )
        if picture_HW3 is None:
            return {}
        frame = fit(picture_HW3, sampling.width, sampling.height)
        start = encode_first_frame(self._vae, frame, sampling.num_frames, precision=self._precision)
        if not self._encodes:
            return {"start": start}
        content = hashlib.sha256(repr(frame.shape).encode() + frame.tobytes()).hexdigest()
        if self._last is None or self._last[0] != content:
            self._last = content, encode_image(self._base, frame, device=self._device)
        return {"start": start, "image_embeds": self._last[1].to(self._device, dtype)}


@torch.no_grad()
def encode_first_frame(
    vae: AutoencoderKLWan, frame_HW3: np.ndarray, num_frames: int, *, precision: Fp32Precision = "ieee"
) -> torch.Tensor:
    """Returns mask and latents of a video of which only the first frame is known, [1, 20, T, h, w] fp32.

    The other frames are grey. The mask is 1 in the first latent frame. Source: diffusers' ``WanImageToVideoPipeline``.

    Args:
        frame_HW3: uint8 RGB of the video's size.
        precision: of convolutions of an fp32 VAE on CUDA.
    """
    rgb = torch.tensor(frame_HW3).to(vae.device, torch.float32)
    first = (rgb / 127.5 - 1).permute(2, 0, 1)[None, :, None]
    latents = encode_mode(vae, F.pad(first, (0, 0, 0, 0, 0, num_frames - 1)), precision=precision)
    mask = torch.zeros_like(latents[:, :TEMPORAL_STRIDE])
    mask[:, :, 0] = 1
    return torch.cat([mask, latents], dim=1)


@torch.no_grad()
def encode_image(base: Path, picture_HW3: np.ndarray, *, device: torch.device | str) -> torch.Tensor:
    """Returns a picture's CLIP embedding [1, 257, image_dim], fp32 on the CPU: the last but one layer of the encoder.

    Loads the encoder for it, and frees it afterwards. The picture is scaled with Pillow, also where torchvision is
    installed, so that all machines give the same embedding.

    Args:
        base: model folder in diffusers layout (``image_processor/`` and ``image_encoder/``).

    Raises:
        CheckpointError: the folder holds no loadable encoder.
    """
    # Only this base needs it. Newer versions call the processor that uses Pillow by another name.
    import transformers

    scaler = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    try:
        processor = scaler.from_pretrained(base / "image_processor", local_files_only=True)
        encoder = transformers.CLIPVisionModel.from_pretrained(
            base / "image_encoder", dtype=torch.float32, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{base}: image encoder: {str(error).splitlines()[0]}") from error
    encoder = encoder.requires_grad_(False).eval().to(device)
    pixels = processor(images=Image.fromarray(picture_HW3), return_tensors="pt").pixel_values.to(device)
    return encoder(pixels, output_hidden_states=True).hidden_states[-2].cpu()
