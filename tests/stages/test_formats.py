"""Formats of ``lynx-render encode``: frames go in, and the same frames are read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lynx_parallel.inputs.formats import Format, read_format
from lynx_parallel.output.marks import Mark
from lynx_parallel.stages.formats import write_format
from lynx_parallel.stages.video import probe, read_frames
from tests.helpers.webp import read_webp

MARK = Mark("d" * 64)


def form(name: str, **options: Any) -> Format:
    return read_format(name, **{"fps": None, "crf": None, "quality": None, "lossless": False, **options})


def noise(frames: int = 9) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, 48, 64, 3), dtype=np.uint8)


def smooth(frames: int = 9) -> np.ndarray:
    """Colours that drift, which a codec keeps well."""
    t, y, x = np.mgrid[0:frames, 0:48, 0:64].astype(np.float32)
    waves = [np.sin((x + 3 * t) / 11), np.cos((y - 2 * t) / 7), np.sin((x + y) / 19 + t / 5)]
    return (128 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


def test_png_frames_are_exact(tmp_path: Path) -> None:
    frames = noise(12)
    write_format(frames, tmp_path / "a", form("png"), fps=16, mark=MARK)
    files = sorted((tmp_path / "a").iterdir())
    assert [file.name for file in files][::11] == ["0001.png", "0012.png"]
    assert np.array_equal(np.stack([np.asarray(Image.open(file)) for file in files]), frames)


def test_lossless_webp_is_exact(tmp_path: Path) -> None:
    frames = noise()
    write_format(frames, tmp_path / "a.webp", form("webp", lossless=True), fps=16, mark=MARK)
    back, _ = read_webp(tmp_path / "a.webp")
    assert np.array_equal(back, frames)


def test_webp_is_near_and_quality_counts(tmp_path: Path) -> None:
    """WebP halves the resolution of colours, so smooth frames come back within 2 levels on average at quality 90."""
    frames = smooth()
    sizes = {}
    for quality in (90, 20):
        write_format(frames, tmp_path / "a.webp", form("webp", quality=quality), fps=16, mark=MARK)
        sizes[quality] = (tmp_path / "a.webp").stat().st_size
        back, _ = read_webp(tmp_path / "a.webp")
        assert back.shape == frames.shape
        error = np.abs(back.astype(int) - frames).mean()
        assert error < 2 if quality == 90 else error < 8
    assert sizes[90] > 1.3 * sizes[20]


@pytest.mark.parametrize(("fps", "own"), [(16, None), (8, 24), (23.976, None)])
def test_webp_keeps_its_length(tmp_path: Path, fps: float, own: float | None) -> None:
    write_format(noise(25), tmp_path / "a.webp", form("webp", fps=own), fps=fps, mark=MARK)
    _, durations = read_webp(tmp_path / "a.webp")
    assert len(durations) == 25
    assert sum(durations) == round(25000 / (own or fps))
    assert max(durations) - min(durations) <= 1


def test_frames_that_do_not_change_keep_their_time(tmp_path: Path) -> None:
    write_format(np.repeat(noise(2), 4, axis=0), tmp_path / "a.webp", form("webp", lossless=True), fps=10, mark=MARK)
    back, durations = read_webp(tmp_path / "a.webp")
    assert len(back) == len(durations)
    assert sum(durations) == 800
    assert np.array_equal(back[0], noise(2)[0])
    assert np.array_equal(back[-1], noise(2)[1])


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_videos(tmp_path: Path, codec: str) -> None:
    write_format(smooth(), tmp_path / "a.mp4", form(codec, crf=14), fps=16, mark=MARK)
    info = probe(tmp_path / "a.mp4")
    assert (info.codec, info.fps, info.frames) == (codec, 16, 9)
    near = np.abs(read_frames(tmp_path / "a.mp4").astype(int) - smooth()).mean()
    write_format(smooth(), tmp_path / "a.mp4", form(codec, crf=50, fps=30), fps=16, mark=MARK)
    assert probe(tmp_path / "a.mp4").fps == 30
    assert np.abs(read_frames(tmp_path / "a.mp4").astype(int) - smooth()).mean() > 2 * near
    write_format(smooth(), tmp_path / "a.mp4", form(codec, lossless=True), fps=16, mark=MARK)
    assert np.abs(read_frames(tmp_path / "a.mp4").astype(int) - smooth()).mean() < near


def test_a_poster_is_the_first_frame(tmp_path: Path) -> None:
    write_format(smooth(), tmp_path / "a.jpg", form("poster"), fps=16, mark=MARK)
    with Image.open(tmp_path / "a.jpg") as picture:
        assert picture.format == "JPEG"
        assert np.abs(np.asarray(picture).astype(int) - smooth()[0]).mean() < 4
