"""A rendered video in memory: the files that it writes, its text and its player."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from lynx_parallel.errors import InputErrors, RenderError
from lynx_parallel.inputs.pipeline import Video
from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.output.marks import Mark, read_mark
from lynx_parallel.stages.rendered import LynxOutput
from lynx_parallel.stages.video import encode_video, probe
from tests.helpers.mp4_boxes import without_mark


def output(video: Video | None = None, width: int = 64) -> LynxOutput:
    ramp = np.linspace(0, 255, 9 * 48 * width * 3).astype(np.uint8).reshape(9, 48, width, 3)
    return LynxOutput(ramp, torch.zeros(1), "a", Sampling(fps=12.5, seed=7), video or Video())


def test_text() -> None:
    assert repr(output()) == "LynxOutput(9 frames, 64x48, 12.5 fps, seed 7)"


def test_saved_as_the_pipeline_file_says(tmp_path: Path) -> None:
    made = output(Video(codec="h265", crf=30))
    made.save(tmp_path / "new" / "a.mp4")
    encode_video(made.frames, tmp_path / "b.mp4", fps=12.5, codec="h265", crf=30)
    assert without_mark((tmp_path / "new" / "a.mp4").read_bytes()) == (tmp_path / "b.mp4").read_bytes()
    assert read_mark(tmp_path / "new" / "a.mp4") == Mark("")


def test_arguments_win(tmp_path: Path) -> None:
    made = output(Video(codec="h265", crf=30))
    made.save(str(tmp_path / "a.MP4"), fps=24, codec="h264", crf=40)
    encode_video(made.frames, tmp_path / "b.mp4", fps=24, codec="h264", crf=40)
    assert without_mark((tmp_path / "a.MP4").read_bytes()) == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("lossless", [False, True])
def test_webp(tmp_path: Path, lossless: bool) -> None:
    made = output(Video(lossless=lossless))
    made.save(tmp_path / "a.webp", fps=8)
    with Image.open(tmp_path / "a.webp") as picture:
        assert (picture.format, picture.size) == ("WEBP", (64, 48))
        assert sum(1 for _ in ImageSequence.Iterator(picture)) == 9
        picture.seek(4)
        picture.load()
        assert picture.info["duration"] == 125
        difference = np.abs(np.asarray(picture.convert("RGB")).astype(int) - made.frames[4])
    assert difference.max() == 0 if lossless else difference.mean() < 10


def test_an_existing_file_is_replaced_only_by_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"mine")
    ffmpeg = tmp_path / "ffmpeg"
    ffmpeg.write_text("#!/bin/sh\nexit 1\n")
    ffmpeg.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(ffmpeg))
    with pytest.raises(RenderError):
        output().save(path)
    assert path.read_bytes() == b"mine"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.mp4", "ffmpeg"]
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE")
    output().save(path)
    assert probe(path).frames == 9
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.mp4", "ffmpeg"]


@pytest.mark.parametrize(
    ("name", "given", "lines"),
    [
        ("a.gif", {}, ["path: 'a.gif': must end in .mp4 or .webp"]),
        ("a", {"fps": 0}, ["path: 'a': must end in .mp4 or .webp",
             "fps=0: must be a number from 1/2000 (0.0005) to 240"]),
        (
            "a.mp4",
            {"codec": "vp9", "crf": 99},
            ["codec='vp9': must be 'h264' or 'h265'", "crf=99: must be a whole number from 0 to 51"],
        ),
        ("a.webp", {"crf": 18}, ["crf=18: .webp has none: save as .mp4, or leave it out"]),
    ],
)  # fmt: skip
def test_mistakes_come_at_once(
    name: str, given: dict[str, Any], lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputErrors) as caught:
        output().save(name, **given)
    assert caught.value.lines == lines
    assert not list(tmp_path.iterdir())


def test_a_notebook_gets_a_player_that_browsers_play(tmp_path: Path) -> None:
    made = output(Video(codec="h265", lossless=True, crf=0))
    shown = made._repr_html_()
    assert shown.startswith('<video controls loop autoplay muted playsinline width="64" height="48" ')
    found = re.search(r'src="data:video/mp4;base64,([A-Za-z0-9+/=]+)"', shown)
    assert found
    (tmp_path / "a.mp4").write_bytes(base64.b64decode(found[1], validate=True))
    info = probe(tmp_path / "a.mp4")
    assert (info.codec, info.frames, info.fps) == ("h264", 9, 12.5)
    assert made._repr_html_() == shown
