"""From a picture to a person: faces across the picture's edge, landmarks written by hand, turned pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from lynx_parallel.errors import SubjectError
from lynx_parallel.subject.detection import Face, InsightFaceDetector
from lynx_parallel.subject.person import FaceModels, Person, identify_person
from lynx_parallel.subject.picture import read_picture
from tests.helpers.tiny_detectors import Answer, answer, write_scrfd

POINTS = [[16, 12], [44, 12], [30, 24], [20, 40], [40, 40]]


class Recognizer:
    def embed(self, crop: np.ndarray) -> np.ndarray:
        assert crop.shape == (112, 112, 3)
        return np.full(512, 512**-0.5, np.float32)


class Models:
    """A real detector with known answers; the recogniser is of no interest here."""

    recognizer = Recognizer()

    def __init__(self, detector: Any):
        self.detector = detector


def models(folder: Path, *answers: Answer) -> FaceModels:
    write_scrfd(folder / "det_tiny.onnx", answers)
    return cast(FaceModels, Models(InsightFaceDetector(folder)))


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(100, 256, (64, 64, 3), dtype=np.uint8)


def identify(folder: Path, *answers: Answer, image: np.ndarray | None = None) -> Person:
    image = picture() if image is None else image
    return identify_person(image, where="ada.jpg", models=models(folder, *answers), reference_size=256)


@pytest.mark.parametrize(
    ("left", "top"),
    [(-12, 20), (20, -12), (52, 20), (20, 52), (-12, -12)],
    ids=["left", "above", "right", "below", "corner"],
)
def test_a_detected_face_across_the_edge(tmp_path: Path, left: float, top: float) -> None:
    person = identify(tmp_path, answer(left, top, 32))
    assert person.landmarks is not None
    assert (person.landmarks < 0).any() or (person.landmarks > 64).any()
    for crop in (person.id_crop, person.ref_crop):
        assert crop is not None
        black = (crop == 0).all(axis=2).mean()
        assert 0.05 < black < 0.95  # what the picture has not is black, as in the reference; the rest is the picture
    assert np.isfinite(person.embedding).all()


def test_a_turned_picture_with_a_face_across_its_edge(tmp_path: Path) -> None:
    """By EXIF: the detector sees the upright picture, in whose pixels the landmarks are."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture()[:40]).save(tmp_path / "turned.png", exif=exif)
    upright = read_picture(tmp_path / "turned.png")
    assert upright.shape == (64, 40, 3)
    person = identify(tmp_path, answer(20, 40, 32), image=upright)
    assert person.landmarks is not None
    assert person.landmarks[:, 0].max() > 40  # beyond the right edge
    assert person.landmarks[:, 1].max() <= 64


@pytest.mark.parametrize("landmarks", [[*POINTS[:4], [70, 40]], [[-1, 12], *POINTS[1:]], [*POINTS[:4], [40, 64.5]]])
def test_landmarks_written_by_hand_lie_in_the_picture(tmp_path: Path, landmarks: list[list[float]]) -> None:
    def given(points: Any) -> Person:
        return identify_person(
            picture(), where="ada.jpg", models=models(tmp_path), landmarks=points, reference_size=256
        )

    with pytest.raises(SubjectError, match=r"^ada\.jpg: landmarks: \[[^]]*\] lies outside the 64x64 picture: give"):
        given(landmarks)
    assert given(POINTS).ref_crop is not None


@pytest.mark.parametrize("landmarks", ["five", [[1, 2], [3]], POINTS[:4], [[9, 9]] * 5])
def test_landmarks_that_are_none(tmp_path: Path, landmarks: Any) -> None:
    with pytest.raises(SubjectError, match=r"^ada\.jpg: landmarks: "):
        identify_person(picture(), where="ada.jpg", models=models(tmp_path), landmarks=landmarks)


def test_a_detected_face_that_cannot_be_cropped_is_not_blamed_on_the_landmarks_key() -> None:
    class OnALine:
        def detect(self, _: np.ndarray) -> list[Face]:
            return [Face(np.array([[x, x] for x in range(5)], np.float32), (0, 0, 9, 9), 0.9)]

    with pytest.raises(SubjectError, match=r"^ada\.jpg: the detected face has eyes, nose and mouth on one line"):
        identify_person(picture(), where="ada.jpg", models=cast(FaceModels, Models(OnALine())))
