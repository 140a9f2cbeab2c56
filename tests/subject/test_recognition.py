"""Recognisers with tiny networks of known answers, and the pose. ``tests/stages/slow/test_score.py`` has real ones."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from lynx_parallel.demo.facepack import ensure_facepack
from lynx_parallel.demo.faces import astronaut, drawn
from lynx_parallel.demo.places import RECOGNISER
from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.recognizers import Recognizer
from lynx_parallel.subject.pose import NOSE_TIP, pose_of
from lynx_parallel.subject.recognition import Recognition, load_recognition
from tests.helpers.tiny_detectors import SIDE, answer, write_other, write_scrfd, write_yunet

RED, ORANGE, BLUE = (255, 0, 0), (255, 128, 0), (128, 0, 255)
"""A face of one colour; the tiny recogniser's descriptor is the brightest value of each channel."""


def face(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), colour, np.uint8)


def packs(folder: Path, name: str) -> Recognition:
    if name == "insightface":
        write_scrfd(folder / "det_tiny.onnx", [answer(8, 8, 32)], channel=2)  # insightface gives BGR to the network
        write_other(folder / "w600k_tiny.onnx")
        return load_recognition(Recognizer("insightface", str(folder)))
    write_yunet(folder / "face_detection_yunet_2023mar.onnx", [answer(8, 8, 32)])
    write_other(folder / "face_recognition_sface_2021dec.onnx")
    return load_recognition(Recognizer("sface", str(folder)))


@pytest.mark.parametrize("name", ["insightface", "sface"])
def test_colours_stand_for_people(tmp_path: Path, name: str) -> None:
    recognition = packs(tmp_path, name)
    found = [recognition.faces(face(colour)) for colour in (RED, ORANGE, BLUE)]
    if name == "sface":  # the tiny YuNet is shown BGR and looks at the first channel
        found[0] = recognition.faces(face((255, 0, 1)))
    faces = [one[0] for one in found if one]
    assert all(one.descriptor.shape == (3,) for one in faces)
    for one in faces:
        assert recognition.similarity(one.descriptor, one.descriptor) == pytest.approx(1.0)
    if len(faces) > 1:
        assert recognition.similarity(faces[0].descriptor, faces[1].descriptor) < 0.999
    assert faces
    assert faces[0].pose.roll == pytest.approx(0.0, abs=0.5)
    assert faces[0].box[2] - faces[0].box[0] == pytest.approx(32, abs=1)
    assert recognition.faces(face((0, 0, 0))) == []


def test_ir_se50_of_the_demo(demo: Path) -> None:
    pack = ensure_facepack()
    recognition = load_recognition(Recognizer("arcface_ir_se50", str(pack / RECOGNISER), str(pack)))
    pictures = [np.asarray(picture.convert("RGB"), np.uint8) for picture in (astronaut(), drawn())]
    faces = [recognition.faces(picture)[0] for picture in pictures]
    assert faces[0].descriptor.shape == (512,)
    assert recognition.similarity(faces[0].descriptor, faces[0].descriptor) == pytest.approx(1.0, abs=1e-5)
    assert recognition.similarity(faces[0].descriptor, faces[1].descriptor) < 0.999


@pytest.mark.parametrize(
    ("recognizer", "line"),
    [
        (Recognizer("insightface", "nowhere"), "no such folder"),
        (Recognizer("sface", "nowhere"), "holds no face_detection_yunet"),
        (Recognizer("arcface_ir_se50", "nowhere.pth", "nowhere"), "no such folder"),
    ],
)
def test_missing_files(recognizer: Recognizer, line: str) -> None:
    with pytest.raises(CheckpointError, match=line):
        load_recognition(recognizer)


def test_a_pack_without_a_recogniser(tmp_path: Path) -> None:
    write_scrfd(tmp_path / "det_tiny.onnx", [answer(8, 8, 32)])
    with pytest.raises(CheckpointError, match="holds no recogniser"):
        load_recognition(Recognizer("insightface", str(tmp_path)))


@pytest.mark.parametrize("yaw", [-30, 0, 20])
@pytest.mark.parametrize("pitch", [-15, 0, 15])
@pytest.mark.parametrize("roll", [-40, 0, 10])
def test_pose(yaw: float, pitch: float, roll: float) -> None:
    angle = math.radians(roll)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    side, down = NOSE_TIP.before * math.sin(math.radians(yaw)), NOSE_TIP.before * math.sin(math.radians(pitch))
    points = np.array([[-20.0, 0.0], [20.0, 0.0], [40 * side, 40 * (NOSE_TIP.below + down)]]) @ turn.T + [100.0, 80.0]
    assert pose_of(points[0], points[1], points[2], NOSE_TIP) == pytest.approx((yaw, pitch, roll), abs=0.1)
