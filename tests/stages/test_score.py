"""Scores of real faces by dlib: who is in a clip, when, and how sure one can be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lynx_parallel.errors import RenderError, SubjectError
from lynx_parallel.inputs.recognizers import Recognizer
from lynx_parallel.output.scores import FrameScore, IdentityScore
from lynx_parallel.stages.score import Scorer, drift
from tests.helpers.real_faces import Picture, astronaut, clip, group, portrait, save, stranger, wall
from tests.helpers.repository import REPOSITORY


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(Recognizer("dlib"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(astronaut(), tmp_path_factory.mktemp("faces") / "ada.png")


def similarities(score: IdentityScore) -> list[float | None]:
    return [frame.similarity for frame in score.frames]


# One frame: the same person above another person above none


def filtered(change: Callable[[Image.Image], Image.Image]) -> Callable[[Picture], Picture]:
    return lambda picture: np.array(change(Image.fromarray(picture)))


COPIES: dict[str, Callable[[Picture], Picture]] = {
    "as it is": lambda picture: picture,
    "flipped": lambda picture: picture[:, ::-1],
    "darkened": lambda picture: (picture * 0.35).astype(np.uint8),
    "blurred": filtered(lambda image: image.filter(ImageFilter.GaussianBlur(2))),
    "turned": filtered(lambda image: image.rotate(12, Image.Resampling.BICUBIC)),
    "sheared": filtered(
        lambda image: image.transform(image.size, Image.Transform.AFFINE, (1, 0.12, -15, 0.04, 0.95, 0))
    ),
    "cropped": lambda picture: picture[60:210, 70:220],
    "enlarged": filtered(lambda image: image.resize((576, 576), Image.Resampling.BICUBIC)),
    "shrunk": filtered(lambda image: image.resize((160, 160), Image.Resampling.BICUBIC)),
}


@pytest.mark.parametrize("copy", COPIES)
def test_a_changed_copy_is_the_same_person(scorer: Scorer, reference: Path, tmp_path: Path, copy: str) -> None:
    """All copies score 0.61 to 0.97; the threshold is 0.4."""
    picture = COPIES[copy](portrait())
    score = scorer.score(clip([picture] * 2, tmp_path / "a.mp4"), reference, frames=1)
    assert score.state == "scored"
    assert score.worst is not None
    print(copy, score.frames)
    assert score.worst > 0.55


def test_another_person_is_far_below_the_threshold(scorer: Scorer, reference: Path, tmp_path: Path) -> None:
    """The six people of the group score 0.14 to 0.28."""
    for left in range(0, 1280 - 256, 128):
        video = clip([group()[90:474, left : left + 384]], tmp_path / "b.mp4")
        score = scorer.score(video, reference)
        print(left, score.frames)
        assert score.worst is None or score.worst < 0.32
