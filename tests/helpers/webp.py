"""Reads animated WebP files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence


def read_webp(path: Path) -> tuple[np.ndarray, list[int]]:
    """Returns the frames of an animation that repeats, [F, H, W, 3] RGB, and how long each is shown, in ms."""
    frames, durations = [], []
    with Image.open(path) as picture:
        assert (picture.format, picture.info["loop"]) == ("WEBP", 0)
        for frame in ImageSequence.Iterator(picture):
            frame.load()
            durations.append(frame.info["duration"])
            frames.append(np.asarray(frame.convert("RGB")))
    return np.stack(frames), durations
