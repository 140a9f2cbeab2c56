"""Reads and checks a subject's picture and landmarks, and crops the face as upstream does.

Ranks call it. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lynx_parallel.errors import SubjectError
from lynx_parallel.inputs.picture_file import MAX_PIXELS, open_picture, outside_mistake
from lynx_parallel.text import one_line

if TYPE_CHECKING:
    from PIL import Image

Picture = NDArray[np.uint8]  # [H, W, 3], RGB

# Where ArcFace wants the five points in a 112 × 112 crop, in image order: left eye, right eye, nose tip, left
# and right corner of the mouth. (insightface/utils/face_align.py)
ARCFACE_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
    dtype=np.float32,
)
ID_SIZE = 112


def read_picture(path: Path | str) -> Picture:
    """Returns the picture as RGB [H, W, 3], upright by its EXIF orientation, transparent parts over white.

    Raises:
        SubjectError: one line naming the file: missing, not a picture, cut off, or larger than MAX_PIXELS.
    """
    from PIL import ImageOps

    with open_picture(path) as image:
        return _to_rgb(ImageOps.exif_transpose(image))


def as_picture(picture: Any, argument: str) -> Picture:
    """Returns a picture that a caller gave as RGB [H, W, 3]: a path, a PIL picture or an array.

    A PIL picture is treated as a file is, see ``read_picture``. An array is used as it is.

    Args:
        argument: name of the caller's argument, for messages.

    Raises:
        SubjectError: one line that starts with ``argument``.
    """
    from PIL import Image, ImageOps

    if isinstance(picture, str | Path):
        try:
            return read_picture(picture)
        except SubjectError as error:
            raise SubjectError(f"{argument}: {error}") from error
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            shown = f"{picture.dtype} {list(picture.shape)}"
            raise SubjectError(f"{argument}: an array {shown}: must be uint8 RGB [H, W, 3]")
        return picture
    if not isinstance(picture, Image.Image):
        kind = type(picture).__name__
        raise SubjectError(f"{argument}: of type {kind}: must be a path, a PIL picture or a uint8 RGB array [H, W, 3]")
    width, height = picture.size
    if not width or not height or width * height > MAX_PIXELS:
        raise SubjectError(f"{argument}: {width}x{height} pixels: must be 1 to {MAX_PIXELS // 10**6} million pixels")
    try:
        return _to_rgb(ImageOps.exif_transpose(picture))
    except Exception as error:  # decoders raise many kinds, also here: PIL decodes a file when it is first used
        raise SubjectError(f"{argument}: cannot be read: {one_line(error)}") from error


def _to_rgb(image: Image.Image) -> Picture:
    from PIL import Image

    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range: save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16- and 32-bit grey: Pillow's own conversion clips at 255
        grey = np.asarray(image, dtype=np.float64)
        # PNG, TIFF and PGM of 16 bits span 0…65535; Pillow gives some of them as 32-bit integers.
        top = 65535.0 if grey.max(initial=0.0) > 255.0 or image.mode.startswith("I;16") else 255.0
        grey8 = np.clip(np.rint(grey * (255.0 / top)), 0, 255).astype(np.uint8)
        return np.repeat(grey8[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def ref_crop(image: Picture, landmarks: ArrayLike, size: int = 256) -> Picture:
    """Returns the face as the reference adapter sees it: loosely framed, black outside the picture. [size, size, 3] RGB

    The reference lowers the ArcFace template by 10 and shrinks it by 0.8 around 56, then scales it as
    insightface does for multiples of 128: by size/128, moved right by 8 of those units.

    Args:
        landmarks: [5, 2], x and y in pixels, in ARCFACE_TEMPLATE's order; they may lie outside the picture.
        size: a multiple of 128 (Lynx: 256).

    Raises:
        SubjectError: landmarks that are not five points of one face.
    """
    template = ARCFACE_TEMPLATE.copy()
    template[:, 1] += 10
    template = (template - 56) * np.float32(0.8) + 56
    ratio = size / 128
    template *= np.float32(ratio)
    template[:, 0] += np.float32(8 * ratio)
    return _warp(image, landmarks, template, size)


def id_crop(image: Picture, landmarks: ArrayLike) -> Picture:
    """Returns the tight crop that ArcFace reads (insightface's ``norm_crop``). Black outside the picture. [112, 112, 3]

    Raises:
        SubjectError: as :func:`ref_crop`.
    """
    return _warp(image, landmarks, ARCFACE_TEMPLATE, ID_SIZE)


def _warp(image: Picture, landmarks: ArrayLike, template: NDArray, size: int) -> Picture:
    import cv2

    points = check_landmarks(landmarks)
    matrix = similarity(points.astype(np.float32), template)
    return cv2.warpAffine(np.ascontiguousarray(image), matrix, (size, size), borderValue=0.0)


def check_inside(landmarks: ArrayLike, width: int, height: int) -> NDArray[np.float64]:
    """Returns landmarks that somebody wrote down, as ``check_landmarks`` does. They must lie inside the picture.

    A detector's landmarks may lie outside: it guesses the mouth of a face that the picture cuts off.

    Args:
        width, height: of the upright picture, in pixels.

    Raises:
        SubjectError: as ``check_landmarks``; or a point outside the picture.
    """
    points = check_landmarks(landmarks)
    if mistake := outside_mistake(points, width, height):
        raise SubjectError(mistake)
    return points


def check_landmarks(landmarks: ArrayLike) -> NDArray[np.float64]:
    """Returns the five points as [5, 2].

    Raises:
        SubjectError: not five finite points that spread in both directions.
    """
    try:
        points = np.asarray(landmarks, dtype=np.float64)
    except (TypeError, ValueError):
        raise SubjectError("landmarks: not numbers: five [x, y] pairs are needed") from None
    if points.shape != (5, 2):
        raise SubjectError(f"landmarks: shape {list(points.shape)}: five [x, y] pairs are needed")
    if not np.isfinite(points).all():
        raise SubjectError("landmarks: not finite: five [x, y] pairs in pixels are needed")
    # Points on a line, or in one spot, define no rotation and scale.
    spread = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    if spread[0] < 1e-3 or spread[1] < 0.02 * spread[0]:
        raise SubjectError(
            "landmarks: the five points coincide or lie on one line: "
            "left eye, right eye, nose tip, left and right corner of the mouth are needed"
        )
    return points


def similarity(source: NDArray, target: NDArray) -> NDArray[np.float64]:
    """Returns the rotation, scale and shift, a 2 × 3 matrix, that bring ``source`` closest to ``target``, both [n, 2].

    S. Umeyama, "Least-squares estimation of transformation parameters between two point patterns", 1991,
    as in skimage.transform.SimilarityTransform, which insightface uses. Never mirrors. In the inputs'
    precision and skimage's order of operations: upstream works on float32 points, and only this gives crops that are
    equal to the last grey level.
    """
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    centred = source - source_mean
    covariance = (target - target_mean).T @ centred / len(source)
    u, s, vt = np.linalg.svd(covariance)
    sign = np.array([1.0, -1.0 if np.linalg.det(covariance) < 0 else 1.0])
    matrix = np.empty((2, 3))
    matrix[:, :2] = u @ np.diag(sign) @ vt
    scale = 1.0 / centred.var(axis=0).sum() * (s @ sign)
    matrix[:, 2] = target_mean - scale * (matrix[:, :2] @ source_mean)
    matrix[:, :2] *= scale
    return matrix
