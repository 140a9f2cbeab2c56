"""Real pictures of people that packages ship, for the real recogniser. Nothing of them is stored in the repository."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]


@cache
def astronaut() -> Picture:
    """Returns the portrait of Eileen Collins by NASA, in the public domain, from scikit-image. [512, 512, 3]"""
    from skimage import data

    return np.asarray(data.astronaut(), np.uint8)


@cache
def group() -> Picture:
    """Returns the sample photo of insightface, with six people. [886, 1280, 3]"""
    import insightface

    from lynx_parallel.subject.picture import read_picture

    return read_picture(Path(insightface.__file__).parent / "data" / "images" / "t1.jpg")


GROUP_BOXES = [(65, 284, 104), (734, 365, 103), (1114, 284, 103), (452, 300, 125), (275, 179, 87), (883, 89, 104)]
"""Left, top and side of the faces in ``group``, in pixels."""


def person(number: int, side: int = 256) -> Picture:
    """Returns one of the six people of ``group`` alone, scaled. [side, side, 3]"""
    import cv2

    left, top, size = GROUP_BOXES[number]
    margin = int(0.45 * size)
    height, width = group().shape[:2]
    rows = slice(max(top - margin, 0), min(top + size + margin, height))
    columns = slice(max(left - margin, 0), min(left + size + margin, width))
    return cv2.resize(np.ascontiguousarray(group()[rows, columns]), (side, side), interpolation=cv2.INTER_CUBIC)


def save(picture: Picture, path: Path) -> Path:
    """Writes a picture as PNG. Returns its path."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path
