"""Makes what the model needs of a person from a photograph: landmarks, crops, embedding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lynx_parallel.errors import SubjectError
from lynx_parallel.inputs.weight_files import FaceFiles
from lynx_parallel.subject.arcface import ArcFace, load_arcface
from lynx_parallel.subject.detection import ADVICE, Detector, FaceChoice, choose_face, make_detector
from lynx_parallel.subject.picture import Picture, check_inside, check_landmarks, id_crop, ref_crop


@dataclass(frozen=True)
class Person:
    """A person as the model needs it, found in a picture or given with it.

    Attributes:
        embedding: ArcFace vector [512], float32, L2-normalised.
        landmarks: [5, 2] pixels of the picture; None if nothing needed them. Detected ones may lie outside it.
        id_crop: what ArcFace saw, uint8 [112, 112, 3] RGB; None if the embedding was given.
        ref_crop: what the reference branch sees, uint8 [size, size, 3] RGB; None for lite.
        warning: a line for the user, if the choice of the face was a guess.
    """

    embedding: np.ndarray
    landmarks: np.ndarray | None = None
    id_crop: np.ndarray | None = None
    ref_crop: np.ndarray | None = None
    warning: str | None = None


class FaceModels:
    """The detector and the recogniser. Each is loaded on first use.

    Args:
        files: of ``weights.find_face_models``.
    """

    def __init__(self, files: FaceFiles, device: Any = "cpu"):
        self._files = files
        self._device = device

    @cached_property
    def detector(self) -> Detector:
        return make_detector(self._files.detector, det_size=self._files.det_size, rgb_quirk=self._files.rgb_quirk)

    @cached_property
    def recognizer(self) -> ArcFace:
        return load_arcface(self._files.recognizer, device=self._device, sha256=self._files.recognizer_sha256)


def identify_person(
    picture: Picture | None,
    *,
    where: str,
    models: FaceModels | None,
    landmarks: Any = None,
    embedding: np.ndarray | None = None,
    choice: FaceChoice = "largest",
    reference_size: int | None = None,
) -> Person:
    """Finds what is not given.

    Args:
        picture: uint8 RGB [H, W, 3]; None where embedding is given and no reference crop is wanted.
        where: the picture's name, for messages.
        models: None where landmarks and embedding are given, or not needed.
        landmarks: [5, 2] as written in the manifest, in pixels of the upright picture; None to detect them.
        reference_size: side of the reference crop in pixels; None for no crop (lite).

    Raises:
        SubjectError: no picture, no face, several under ``only``, or landmarks that cannot be used. Only given
            landmarks must lie inside the picture.
    """
    if embedding is not None and reference_size is None:
        return Person(embedding)
    if picture is None:
        raise SubjectError(f"{where}: a picture is needed: to find the face, or for the reference branch")
    if landmarks is None and models is None:
        raise SubjectError(f"{where}: no landmarks given, and no face models to find them")
    if embedding is None and models is None:
        raise SubjectError(f"{where}: no embedding given, and no face models to make it")
    points, warning = _find(picture, where, models, landmarks, choice)
    small = id_crop(picture, points) if embedding is None else None
    reference = None if reference_size is None else ref_crop(picture, points, size=reference_size)
    if small is not None:
        assert models is not None
        embedding = models.recognizer.embed(small)
    assert embedding is not None
    return Person(embedding, points, small, reference, warning)


def _find(
    picture: Picture, where: str, models: FaceModels | None, landmarks: Any, choice: FaceChoice
) -> tuple[np.ndarray, str | None]:
    """Returns the face's landmarks, [5, 2] float32, given or detected, and a warning where the choice was a guess."""
    if landmarks is not None:
        height, width = picture.shape[:2]
        try:
            return check_inside(landmarks, width, height).astype(np.float32), None
        except SubjectError as error:
            raise SubjectError(f"{where}: {error}") from None
    assert models is not None
    face, warning = choose_face(models.detector.detect(picture), choice, where)
    try:
        check_landmarks(face.landmarks)
    except SubjectError:
        message = "the detected face has eyes, nose and mouth on one line, so it cannot be cropped"
        raise SubjectError(f"{where}: {message}: {ADVICE}") from None
    return face.landmarks, warning
