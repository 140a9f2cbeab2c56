"""Predicts the memory that the VAE takes for a video, from its size alone. Imports neither torch nor Ray."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

SPATIAL_STRIDE, TEMPORAL_STRIDE, PATCH = 8, 4, 2
"""Strides of Wan's VAE in pixels and frames, and the side of the transformer's patches in latent pixels."""
VAE_BASE_DIM = 96
"""Channels of Wan2.1's VAE at full resolution (``base_dim``)."""
TILE = 256
"""Side of diffusers' tiles, in pixels."""
_WHOLE, _BAND, _TILED_VIDEOS, _FRAME_VIDEOS = 51, 57, 5, 3
_TF32_WORKSPACE = 8
_ENCODE = 39


class VideoSize(NamedTuple):
    """Size of a video in pixels and frames."""

    width: int
    height: int
    frames: int

    @property
    def tokens(self) -> int:
        """Tokens of the transformer."""
        side = SPATIAL_STRIDE * PATCH
        return ((self.frames - 1) // TEMPORAL_STRIDE + 1) * (self.height // side) * (self.width // side)


def decode_bytes(
    size: VideoSize,
    *,
    ranks: int = 1,
    tiled: bool = False,
    base_dim: int = VAE_BASE_DIM,
    dtype_bytes: int = 4,
    tf32: bool = False,
) -> int:
    """Returns the peak of decoding and of making uint8 frames on the fullest rank, without the VAE's weights.

    C: base channels; H × W: pixels; F: frames; b: bytes of a number; U = b·C·H·W: one frame of C channels. The VAE
    decodes one latent frame (four frames) at a time. The peak is at a convolution at full resolution.

    - Whole video, traced with fake tensors to within 1 % at 480p and 720p: the block's input, the residual and the
      activation (4 U each), the input behind its cached frames, and that input padded (6 U each), what the causal
      convolutions keep from the frames before (26.6 U): 51 U. Beside it the decoded video, V = b·3·F·H·W.
    - Rows over P ranks (DistVAE), an upper bound, tested on two ranks: a band of B = ⌈latent rows / P⌉ rows has one
      row of its neighbours at most, and the input is copied once more with those rows (6 U):
      57 U · (B + 1) / latent rows. Every rank gets the whole video, V.
    - Tiles of 256 × 256 pixels (diffusers), an upper bound: 51 U of one tile and the overlapping tiles, which are
      1.8 V at most. Then tiles, blended rows, video and clamped video together, 5 V.

    Making frames takes 3 V, which matters only above 800 frames. On an H200 with cuDNN 9.19, fp32 convolutions took no
    workspace: the measured peak is the prediction to within 1 %. TF32 convolutions took 8 U more at 480p and at 720p.

    Args:
        tf32: convolutions are computed in TF32, on CUDA.
    """
    pixel = dtype_bytes * size.height * size.width
    video = pixel * 3 * size.frames
    workspace = _TF32_WORKSPACE if tf32 else 0
    if tiled and (size.height > TILE or size.width > TILE):
        return max((_WHOLE + workspace) * dtype_bytes * base_dim * TILE**2 + 2 * video, _TILED_VIDEOS * video)
    rows = size.height // SPATIAL_STRIDE
    frames: float = _WHOLE + workspace
    if not tiled and 1 < ranks <= rows:  # as vae.can_split
        frames = (_BAND + workspace) * (ceil(rows / ranks) + 1) / rows
    return max(ceil(frames * base_dim * pixel) + video, _FRAME_VIDEOS * video)


def encode_bytes(size: VideoSize, *, base_dim: int = VAE_BASE_DIM, dtype_bytes: int = 4) -> int:
    """Returns the peak of encoding a video of which the first frame is known, on one rank, without the VAE's weights.

    In the terms of ``decode_bytes``, 39 U and V. Traced on the CPU: 38.7 U and V. No GPU has confirmed it.
    """
    pixel = dtype_bytes * size.height * size.width
    return _ENCODE * base_dim * pixel + pixel * 3 * size.frames
