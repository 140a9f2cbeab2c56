"""Reads some frames of a video file, at equal distances, of any format that ffmpeg reads."""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lynx_parallel.errors import RenderError
from lynx_parallel.stages.video import run_ffmpeg


@dataclass(frozen=True, eq=False)
class SampledFrame:
    """A frame of a video.

    Attributes:
        index: from 0.
        time: seconds since the first frame.
        image: uint8 RGB [H, W, 3].
    """

    index: int
    time: float
    image: NDArray[np.uint8]


def sample_frames(path: Path, most: int) -> list[SampledFrame]:
    """Returns at most ``most`` frames at equal distances, the first and the last among them.

    Raises:
        RenderError: one line: no such file, no video in it, or frames that do not decode.
    """
    times = _times(path)
    count = min(most, len(times))
    indexes = sorted({round(step * (len(times) - 1) / max(count - 1, 1)) for step in range(count)})
    wanted = "+".join(f"eq(n\\,{index})" for index in indexes)
    raw = run_ffmpeg(
        path, "-vf", f"select={wanted}", "-fps_mode", "passthrough", "-c:v", "ppm", "-f", "image2pipe", "-"
    )
    images = list(_pictures(raw))
    if len(images) != len(indexes):
        raise RenderError(f"{path}: has {len(times)} frames, and not all of them decode")
    return [SampledFrame(index, times[index], image) for index, image in zip(indexes, images, strict=True)]


def _times(path: Path) -> list[float]:
    """Returns the time of each frame in seconds, in order. Decodes nothing."""
    tick, stamps = Fraction(1), []
    for line in run_ffmpeg(path, "-c", "copy", "-f", "framecrc", "-").decode().splitlines():
        key, _, value = line.partition(":")
        if key.startswith("#tb"):
            tick = Fraction(value.strip())
        elif line.strip() and not line.startswith("#"):
            stamps.append(int(line.split(",")[2]))
    if not stamps:
        raise RenderError(f"{path}: holds no video frames")
    first = min(stamps)
    return [float((stamp - first) * tick) for stamp in sorted(stamps)]


def _pictures(raw: bytes) -> list[NDArray[np.uint8]]:
    """Returns the pictures of a stream of PPM files, each ``P6``, width, height, 255, pixels."""
    stream, found = io.BytesIO(raw), []
    while stream.readline():
        width, height = map(int, stream.readline().split())
        stream.readline()
        pixels = stream.read(3 * width * height)
        if len(pixels) < 3 * width * height:
            break
        found.append(np.frombuffer(pixels, np.uint8).reshape(height, width, 3))
    return found
