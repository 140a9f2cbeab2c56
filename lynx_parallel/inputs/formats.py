"""Formats that finished shots can be encoded in again. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.pipeline import Video
from lynx_parallel.inputs.problems import nearest
from lynx_parallel.inputs.sampling import MAX_FPS, MIN_FPS

FormatName = Literal["h264", "h265", "webp", "png", "poster"]
VIDEOS = ("h264", "h265")
_SUFFIXES: dict[FormatName, str] = {"h264": ".mp4", "h265": ".mp4", "webp": ".webp", "png": "", "poster": ".jpg"}
_MEANT = {"mp4": "h264", "avc": "h264", "hevc": "h265", "jpg": "poster", "jpeg": "poster", "frames": "png"}
"""Other names of the formats, for suggestions."""
_QUALITY = 90


@dataclass(frozen=True)
class Format:
    """A format and its quality.

    Attributes:
        name: ``h264``, ``h265``: MP4; ``webp``: an animated picture; ``png``: a folder of frames, exact; ``poster``:
            the first frame, as JPEG.
        fps: frames a second; None for those of the shot, and for pictures that stand still.
        crf: of h264 and h265, 1 to 51; lower is better and larger.
        quality: of webp and poster, 1 to 100; higher is better and larger.
        lossless: keeps every value: for webp of the frames, for h264 and h265 of the yuv420p picture.
    """

    name: FormatName
    fps: float | None = None
    crf: int | None = None
    quality: int | None = None
    lossless: bool = False

    @property
    def suffix(self) -> str:
        """Suffix of the file; empty for a folder of frames."""
        return _SUFFIXES[self.name]

    @property
    def moves(self) -> bool:
        """Whether the format has a frame rate."""
        return self.name not in ("png", "poster")


def read_format(name: str, *, fps: float | None, crf: int | None, quality: int | None, lossless: bool) -> Format:
    """Returns the format that options describe, with defaults.

    Raises:
        InputErrors: one line per wrong option.
    """
    lines = list(_mistakes(name, fps, crf, quality, lossless))
    if lines:
        raise InputErrors(lines)
    if name in VIDEOS:
        return Format(name, fps, None if lossless else crf or Video().crf, None, lossless)  # type: ignore[arg-type]
    return Format(name, fps, None, None if lossless or name == "png" else quality or _QUALITY, lossless)  # type: ignore[arg-type]


def _mistakes(name: str, fps: float | None, crf: int | None, quality: int | None, lossless: bool) -> Iterator[str]:
    names = get_args(FormatName)
    if name not in names:
        hint = nearest(_MEANT.get(name.casefold(), name), names, "formats")
        yield f"--format {name}: no such format; {hint}"
        return
    rules: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
        ("--crf", crf, VIDEOS), ("--quality", quality, ("webp", "poster")), ("--lossless", lossless or None,
        (*VIDEOS, "webp")), ("--fps", fps, (*VIDEOS, "webp")),
    )  # fmt: skip
    for option, value, fits in rules:
        if value is not None and name not in fits:
            yield f"{option}: not for {name}; it is for {', '.join(fits)}"
    if crf is not None and not 1 <= crf <= 51:
        yield f"--crf {crf}: must be a whole number from 1 to 51; --lossless keeps every value"
    if quality is not None and not 1 <= quality <= 100:
        yield f"--quality {quality}: must be a whole number from 1 to 100"
    if fps is not None and not MIN_FPS <= fps <= MAX_FPS:
        yield f"--fps {fps:g}: must be a number from {MIN_FPS:g} to {MAX_FPS:g}"
    for option, value in (("--crf", crf), ("--quality", quality)):
        if lossless and value is not None:
            yield f"{option}: not together with --lossless"
