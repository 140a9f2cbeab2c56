"""Checks the pictures with which videos begin. Imports neither torch nor Ray."""

from __future__ import annotations

from pathlib import Path

from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.inputs.notices import Notice
from lynx_parallel.inputs.picture_file import picture_mistake, upright_size
from lynx_parallel.text import shown_path

_MOST_CUT = 0.1
"""Share of a picture that may be cut off without a warning."""


def check_starts(campaign: Campaign) -> tuple[dict[Path, str], list[Notice]]:
    """Reads format and size of each ``start_image``.

    Returns:
        What is wrong with those that cannot be read, by path. Warnings about them, and about pictures of which the
        video's shape cuts off more than a tenth.
    """
    wrong: dict[Path, str] = {}
    notices: list[Notice] = []
    pairs = {(shot.start_image, shot.sampling.width, shot.sampling.height): None for shot in campaign.shots}
    for path, width, height in pairs:
        if path is None or path in wrong:
            continue
        shown = shown_path(path)
        if (error := picture_mistake(path)) is not None:
            wrong[path] = str(error).replace(str(path), shown, 1)
            message = "first frames cannot be read; the shots that need them are blocked"
            notices.append(Notice("start-image-unreadable", message, shown))
        elif lost := _lost(upright_size(path), (width, height)):
            message = "first frames are cut to the shape of the video; use a picture of that shape to choose the part"
            notices.append(Notice("start-image-cut", message, f"{shown}: {lost} at {width}x{height}"))
    return wrong, notices


def _lost(picture: tuple[int, int], video: tuple[int, int]) -> str:
    """Returns how much of a picture is cut off, in words; nothing if it is little."""
    ratio = picture[0] * video[1] / (picture[1] * video[0])
    share = 1 - min(ratio, 1 / ratio)
    if share <= _MOST_CUT:
        return ""
    return f"{share:.0%} of its {'width' if ratio > 1 else 'height'} is lost"
