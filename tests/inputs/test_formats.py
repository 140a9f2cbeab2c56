"""Formats and their options."""

from __future__ import annotations

from typing import Any

import pytest

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.formats import Format, read_format

NOTHING: dict[str, Any] = {"fps": None, "crf": None, "quality": None, "lossless": False}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("h264", {}, Format("h264", crf=18)),
        ("h265", {"crf": 30, "fps": 24.0}, Format("h265", fps=24.0, crf=30)),
        ("h265", {"lossless": True}, Format("h265", lossless=True)),
        ("webp", {}, Format("webp", quality=90)),
        ("webp", {"lossless": True}, Format("webp", lossless=True)),
        ("png", {}, Format("png")),
        ("poster", {"quality": 50}, Format("poster", quality=50)),
    ],
)
def test_formats(name: str, options: dict[str, Any], expected: Format) -> None:
    assert read_format(name, **{**NOTHING, **options}) == expected


@pytest.mark.parametrize(
    ("name", "options", "lines"),
    [
        ("hevc", {}, ["--format hevc: no such format; did you mean 'h265'? (formats: h264, h265, webp, png, poster)"]),
        ("gif", {}, ["--format gif: no such format; formats: h264, h265, webp, png, poster"]),
        (
            "png", {"crf": 0, "fps": 300.0, "lossless": True},
            [
                "--crf: not for png; it is for h264, h265",
                "--lossless: not for png; it is for h264, h265, webp",
                "--fps: not for png; it is for h264, h265, webp",
                "--crf 0: must be a whole number from 1 to 51; --lossless keeps every value",
                "--fps 300: must be a number from 0.0005 to 240",
                "--crf: not together with --lossless",
            ],
        ),
        ("webp", {"quality": 0}, ["--quality 0: must be a whole number from 1 to 100"]),
    ],
)  # fmt: skip
def test_mistakes(name: str, options: dict[str, Any], lines: list[str]) -> None:
    with pytest.raises(InputErrors) as error:
        read_format(name, **{**NOTHING, **options})
    assert error.value.lines == lines
