"""Writes frames in the formats of ``lynx-render encode``: MP4, animated WebP, PNG frames, a still."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lynx_parallel.inputs.formats import VIDEOS, Format
from lynx_parallel.inputs.pipeline import Video
from lynx_parallel.output.marks import Mark, add_mark, xmp_packet
from lynx_parallel.stages.video import encode_video

Frames = NDArray[np.uint8]
"""[F, H, W, 3], RGB."""


def write_format(frames: Frames, path: Path, form: Format, *, fps: float, mark: Mark) -> None:
    """Writes frames to exactly ``path``, which for png is a folder.

    Args:
        fps: frames a second, unless the format has its own.
        mark: what the file says of itself.

    Raises:
        RenderError: ffmpeg failed.
        OSError: the file cannot be written.
    """
    fps = form.fps or fps
    if form.name in VIDEOS:
        crf = Video().crf if form.crf is None else form.crf
        encode_video(frames, path, fps=fps, codec=form.name, crf=crf, lossless=form.lossless)
        add_mark(path, mark)
    elif form.name == "webp":
        write_webp(frames, path, fps=fps, quality=form.quality, lossless=form.lossless, mark=mark)
    elif form.name == "png":
        path.mkdir(parents=True)
        digits = max(4, len(str(len(frames))))
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp_packet(mark).decode())
        for number, frame in enumerate(frames, start=1):
            Image.fromarray(frame).save(path / f"{number:0{digits}}.png", pnginfo=info)
    else:
        Image.fromarray(frames[0]).save(path, format="JPEG", quality=form.quality, optimize=True, xmp=xmp_packet(mark))


def write_webp(frames: Frames, path: Path, *, fps: float, quality: int | None, lossless: bool, mark: Mark) -> None:
    """Writes an animation that repeats, in WebP whatever the suffix of ``path``.

    Identical frames in a row become one that is shown longer.
    """
    # WebP counts milliseconds: each end is rounded, so that the whole keeps its length.
    ends = [round(1000 * number / fps) for number in range(len(frames) + 1)]
    durations = [max(end - start, 1) for start, end in itertools.pairwise(ends)]
    first, *others = (Image.fromarray(frame) for frame in frames)
    options = {"xmp": xmp_packet(mark), **({"lossless": True} if lossless else {"quality": quality})}
    first.save(path, format="WEBP", save_all=True, append_images=others, duration=durations, loop=0, **options)
