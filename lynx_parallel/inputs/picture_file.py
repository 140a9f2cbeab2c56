"""Opens a subject's picture: its format and size, before any pixel is decoded. Imports no numpy and no torch.

HEIC, which phones make, is read with the extra ``[heic]`` (pillow-heif).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_parallel.errors import SubjectError
from lynx_parallel.inputs.special import refuse_special
from lynx_parallel.text import one_line

if TYPE_CHECKING:
    from PIL import Image

# Real pictures stay far below; a crafted 1 MB file that unpacks to tens of gigabytes does not.
MAX_PIXELS = 150_000_000  # below the 179 million at which Pillow itself refuses
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Kinds of HEIF files; AVIF has its own, which Pillow reads."""
HEIC_REMEDY = "pip install 'lynx-parallel[heic]' (pillow-heif), or save it as JPEG or PNG"


class HeicUnreadable(SubjectError):
    """A HEIC picture cannot be read, because pillow-heif is not installed."""


class OutsideLandmarks(SubjectError):
    """Landmarks of the manifest lie outside the picture."""


_TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


@contextmanager
def open_picture(path: Path | str) -> Iterator[Image.Image]:
    """Opens a picture; its pixels are decoded only when they are used within the block.

    Raises:
        SubjectError: one line naming the file: missing, not a picture, cut off, or larger than MAX_PIXELS. Errors of
            decoders within the block become one, too.
        HeicUnreadable: it needs pillow-heif.
    """
    from PIL import Image

    refuse_special(path, SubjectError)
    try:
        with _opened(path) as image:
            if image.format == "EPS":  # Pillow would hand it to Ghostscript, an interpreter
                raise SubjectError(f"{path}: EPS is a program, not a picture: save it as PNG or JPEG")
            width, height = image.size
            if not width or not height:
                raise SubjectError(f"{path}: {width}x{height} pixels: an empty picture")
            if width * height > MAX_PIXELS:
                raise SubjectError(f"{path}: {width}x{height} pixels: at most {MAX_PIXELS // 10**6} million are read")
            yield image
    except SubjectError:
        raise
    except Image.UnidentifiedImageError:
        raise SubjectError(f"{path}: not a picture (or of a format that Pillow cannot read)") from None
    except Image.DecompressionBombError:
        raise SubjectError(f"{path}: more than {MAX_PIXELS // 10**6} million pixels") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, EOFError, zlib.error, …
        raise SubjectError(f"{path}: cannot be read: {one_line(error)}") from error


def picture_mistake(path: Path, landmarks: Sequence[tuple[float, float]] | None = None) -> SubjectError | None:
    """Returns what is wrong with a picture's header or size, or None. Damage behind the header is not looked for.

    Args:
        landmarks: that somebody wrote down, [x, y] in pixels of the upright picture.
    """
    try:
        with open_picture(path) as image:
            width, height = image.size
            outside, turned = (outside_mistake(landmarks or (), *size) for size in ((width, height), (height, width)))
            if (outside or turned) and image.getexif().get(0x0112) in _TURNED:  # EXIF may stand behind the pixels
                outside = turned
            return OutsideLandmarks(f"{path}: {outside}") if outside else None
    except SubjectError as error:
        return error


def upright_size(path: Path) -> tuple[int, int]:
    """Returns width and height of a picture, upright by its EXIF orientation. Raises as ``open_picture``."""
    with open_picture(path) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(0x0112) in _TURNED else (width, height)


def outside_mistake(points: Iterable[Sequence[float]], width: int, height: int) -> str | None:
    """Returns what is wrong with written landmarks of which one lies outside the picture, or None.

    A detector's landmarks may lie outside: it guesses the mouth of a face that the picture cuts off.
    """
    for x, y in points:
        if not (0 <= x <= width and 0 <= y <= height):
            return (
                f"landmarks: [{x:g}, {y:g}] lies outside the {width}x{height} picture: "
                "give pixels of the upright picture, or leave landmarks out to have them found"
            )
    return None


def _opened(path: Path | str) -> Image.Image:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
        try:
            return Image.open(path)
        except Image.UnidentifiedImageError:
            if not _is_heif(path):
                raise
        _register_heif(path)
        return Image.open(path)


def _is_heif(path: Path | str) -> bool:
    with open(path, "rb") as file:
        start = file.read(12)
    return start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS


def _register_heif(path: Path | str) -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise HeicUnreadable(f"{path}: a HEIC picture: {HEIC_REMEDY}") from None
    register_heif_opener()
