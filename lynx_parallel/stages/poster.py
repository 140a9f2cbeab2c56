"""The poster of a video: a strip of small frames, for reports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lynx_parallel.output.posters import POSTER_FRAMES, POSTER_SIDE


def write_poster(frames: NDArray[np.uint8], path: Path) -> None:
    """Writes a JPEG of ``POSTER_FRAMES`` frames of a video, evenly spaced, side by side.

    Args:
        frames: uint8 [F, H, W, 3] RGB.

    Raises:
        OSError: the file cannot be written.
    """
    count, height, width, _ = frames.shape
    factor = min(POSTER_SIDE / max(height, width), 1)
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    chosen = ((np.arange(POSTER_FRAMES) + 0.5) * count / POSTER_FRAMES).astype(int)
    strip = Image.new("RGB", (size[0] * POSTER_FRAMES, size[1]))
    for place, index in enumerate(chosen):
        small = Image.fromarray(frames[index]).resize(size, Image.Resampling.LANCZOS)
        strip.paste(small, (place * size[0], 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    strip.save(path, format="JPEG", quality=82)
