"""Scores by the real recogniser of dlib, on real pictures and clips made of them."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from lynx_parallel.errors import ClusterError, RenderError, SubjectError
from lynx_parallel.inputs.recognizers import Recognizer
from lynx_parallel.output.scores import IdentityScore
from lynx_parallel.stages.sampled_frames import sample_frames
from lynx_parallel.stages.score import Scorer, drift
from lynx_parallel.stages.video import encode_video
from tests.helpers.real_pictures import Picture, astronaut, person, save

THRESHOLD = 0.4
"""dlib's own: a distance of 0.6."""


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(Recognizer("dlib"))


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    return save(astronaut(), tmp_path / "astronaut.png")


def clip(frames: list[Picture], path: Path) -> Path:
    """Writes a video of 8 frames per second."""
    encode_video(np.stack(frames), path, fps=8, codec="h264", crf=12)
    return path


def crop(left: int = 64, side: int = 320) -> Picture:
    """The portrait's face, with some of what is around it."""
    return astronaut()[:side, left : left + side]


def turned(picture: Picture) -> Picture:
    matrix = cv2.getRotationMatrix2D((160, 140), 12, 1.0)
    return np.asarray(cv2.warpAffine(picture, matrix, picture.shape[1::-1], borderMode=cv2.BORDER_REPLICATE))


def seen_from_the_side(picture: Picture) -> Picture:
    side = picture.shape[0]
    corners = np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float32)
    moved = np.array([[0, 0], [side * 0.9, side * 0.06], [side * 0.9, side * 0.94], [0, side]], np.float32)
    matrix = cv2.getPerspectiveTransform(corners, moved)
    return np.asarray(cv2.warpPerspective(picture, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE))


COPIES: dict[str, Callable[[Picture], Picture]] = {
    "flipped": lambda picture: np.ascontiguousarray(picture[:, ::-1]),
    "blurred": lambda picture: np.asarray(cv2.GaussianBlur(picture, (0, 0), 2)),
    "half": lambda picture: np.asarray(cv2.resize(picture, (160, 160), interpolation=cv2.INTER_AREA)),
    "dark": lambda picture: (picture * 0.4).astype(np.uint8),
    "turned": turned,
    "perspective": seen_from_the_side,
    "cropped": lambda picture: picture[40:240, 60:260].copy(),
}


@pytest.mark.parametrize("copy", COPIES)
def test_copies_score_above_all_other_people(scorer: Scorer, reference: Path, tmp_path: Path, copy: str) -> None:
    same = scorer.score(clip([COPIES[copy](crop())] * 3, tmp_path / "same.mp4"), reference)
    assert same.state == "scored"
    assert same.mean is not None
    # Seen: 0.63 to 0.93 for the copies, 0.15 to 0.29 for the six other people.
    assert same.mean > THRESHOLD + 0.15
    assert same.worst is not None
    assert same.worst <= same.mean


@pytest.mark.parametrize("number", range(6))
def test_other_people_score_below_the_threshold(scorer: Scorer, reference: Path, tmp_path: Path, number: int) -> None:
    other = scorer.score(clip([person(number)] * 3, tmp_path / "other.mp4"), reference)
    assert other.state == "scored"
    assert other.mean is not None
    assert other.mean < THRESHOLD - 0.05


def test_no_face_is_no_score(scorer: Scorer, reference: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
    for number, frames in enumerate(([noise] * 4, [np.zeros((64, 64, 3), np.uint8)] * 4)):
        score = scorer.score(clip(frames, tmp_path / f"{number}.mp4"), reference)
        assert (score.state, score.mean, score.worst, score.drift, score.with_face) == ("no face", None, None, None, 0)
        assert [frame.similarity for frame in score.frames] == [None] * 4


def test_a_pan_keeps_its_score(scorer: Scorer, reference: Path, tmp_path: Path) -> None:
    score = scorer.score(clip([crop(left=8 * step) for step in range(24)], tmp_path / "pan.mp4"), reference)
    assert score.with_face == 1.0
    assert score.mean is not None
    assert score.mean > 0.85
    assert score.drift is not None
    assert abs(score.drift) < 0.1
    assert len(score.frames) == 16
    assert [score.frames[0].index, score.frames[-1].index] == [0, 23]
    assert score.frames[-1].time == pytest.approx(23 / 8)
    assert {frame.faces for frame in score.frames} == {1}
    assert all(0.2 < frame.size < 0.5 for frame in score.frames)


def test_another_face_from_the_middle_on(scorer: Scorer, reference: Path, tmp_path: Path) -> None:
    frames = [cv2.resize(crop(), (256, 256))] * 8 + [person(0)] * 8
    score = scorer.score(clip([np.asarray(frame) for frame in frames], tmp_path / "change.mp4"), reference)
    assert score.with_face == 1.0
    assert score.worst is not None
    assert score.worst < THRESHOLD
    assert score.drift is not None
    assert score.drift < -0.5
    similarities = [frame.similarity or 0.0 for frame in score.frames]
    assert min(similarities[:8]) > THRESHOLD + 0.15 > THRESHOLD > max(similarities[8:])


def test_the_face_leaves_the_frame(scorer: Scorer, reference: Path, tmp_path: Path) -> None:
    away = astronaut()[192:512, 0:320]  # a shoulder and a flag
    score = scorer.score(clip([crop()] * 6 + [away] * 2, tmp_path / "leaves.mp4"), reference)
    assert score.state == "scored"
    assert score.with_face == 0.75
    assert [frame.similarity is None for frame in score.frames] == [False] * 6 + [True] * 2
    assert score.mean is not None
    assert score.mean > 0.85


def test_of_two_faces_the_best_match_counts(scorer: Scorer, reference: Path, tmp_path: Path) -> None:
    both = np.concatenate([person(1, 320), crop(), person(2, 320)], axis=1)
    score = scorer.score(clip([both] * 2, tmp_path / "both.mp4"), reference)
    assert {frame.faces for frame in score.frames} == {3}
    assert score.mean is not None
    assert score.mean > 0.85


def test_the_reference_follows_the_choice_of_the_face(scorer: Scorer, tmp_path: Path) -> None:
    picture = save(
        np.concatenate([crop(), np.asarray(cv2.resize(person(0), (320, 320)))], axis=1), tmp_path / "two.png"
    )
    video = clip([crop()] * 2, tmp_path / "one.mp4")
    first, second = (scorer.score(video, picture, face=number).mean or 0.0 for number in (1, 2))
    assert first > THRESHOLD + 0.15 > THRESHOLD > second
    landmarks = [(480, 150)] * 5
    assert scorer.score(video, picture, landmarks=landmarks).mean == second
    with pytest.raises(SubjectError, match="2 faces found"):
        scorer.score(video, picture, face="only")


def test_a_picture_without_a_face_is_no_reference(scorer: Scorer, tmp_path: Path) -> None:
    picture = save(np.zeros((128, 128, 3), np.uint8), tmp_path / "black.png")
    score = scorer.score(clip([crop()] * 2, tmp_path / "one.mp4"), picture)
    assert (score.state, score.mean, score.frames) == ("no reference", None, ())


def test_pose(scorer: Scorer, reference: Path, tmp_path: Path) -> None:
    def pose(picture: Picture, name: str) -> tuple[float, float, float]:
        frame = scorer.score(clip([picture], tmp_path / name), reference).frames[0]
        return frame.yaw, frame.pitch, frame.roll

    yaw, _, roll = pose(crop(), "front.mp4")
    mirrored = pose(COPIES["flipped"](crop()), "mirrored.mp4")
    assert abs(yaw) < 20
    assert mirrored[2] == pytest.approx(-roll, abs=3)
    assert mirrored[0] == pytest.approx(-yaw, abs=6)
    leaning = pose(turned(crop()), "leaning.mp4")  # counter-clockwise by 12 degrees
    assert leaning[2] - roll == pytest.approx(-12, abs=4)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text"])
def test_a_video_that_cannot_be_read(scorer: Scorer, reference: Path, tmp_path: Path, damage: str) -> None:
    video = clip([crop()] * 8, tmp_path / "video.mp4")
    content = {"empty": b"", "cut": video.read_bytes()[: video.stat().st_size // 2], "text": b"no video"}
    if damage == "missing":
        video.unlink()
    else:
        video.write_bytes(content[damage])
    with pytest.raises(RenderError) as error:
        scorer.score(video, reference)
    assert str(video) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_picture_that_cannot_be_read(scorer: Scorer, tmp_path: Path) -> None:
    picture = tmp_path / "ada.png"
    picture.write_bytes(b"no picture")
    with pytest.raises(SubjectError, match=r"ada\.png"):
        scorer.score(clip([crop()] * 2, tmp_path / "one.mp4"), picture)


@pytest.mark.parametrize("package", ["dlib", "face_recognition_models"])
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    class Blocker:
        def find_spec(self, name: str, *_: Any) -> None:
            if name.partition(".")[0] == package:
                raise ModuleNotFoundError(name)

    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Blocker(), *sys.meta_path])
    with pytest.raises(ClusterError, match=r"pip install 'lynx-parallel\[dlib\]'"):
        Scorer(Recognizer("dlib"))


@pytest.mark.parametrize(
    ("most", "indexes"), [(1, [0]), (2, [0, 8]), (3, [0, 4, 8]), (5, [0, 2, 4, 6, 8]), (99, list(range(9)))]
)
def test_sampled_frames(tmp_path: Path, most: int, indexes: list[int]) -> None:
    frames = [np.full((32, 48, 3), 20 * number, np.uint8) for number in range(9)]
    sampled = sample_frames(clip(frames, tmp_path / "grey.mp4"), most)
    assert [frame.index for frame in sampled] == indexes
    assert [frame.time for frame in sampled] == pytest.approx([index / 8 for index in indexes])
    for frame in sampled:
        assert frame.image.shape == (32, 48, 3)
        assert abs(float(frame.image.mean()) - 20 * frame.index) < 4


@pytest.mark.parametrize(
    ("times", "similarities", "change"),
    [([], [], None), ([1.0], [0.5], None), ([0, 1, 2], [0.5, 0.6, 0.7], 0.2), ([0, 1, 3], [0.5, 0.4, 0.2], -0.3)],
)
def test_drift(times: list[float], similarities: list[float], change: float | None) -> None:
    assert drift(times, similarities) == (None if change is None else pytest.approx(change))


def test_scores_are_complete(scorer: Scorer, reference: Path, tmp_path: Path) -> None:
    score: IdentityScore = scorer.score(clip([crop()] * 3, tmp_path / "one.mp4"), reference, frames=2)
    assert (score.recognizer, score.scale, score.threshold) == ("dlib", "1 − Euclidean distance", 0.4)
    assert score.model.startswith("dlib 20")
    assert len(score.reference) == 64
    assert len(score.frames) == 2
    assert all(one.time <= two.time for one, two in itertools.pairwise(score.frames))
