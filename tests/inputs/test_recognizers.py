"""Recognisers by their names, and what is wrong with their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from lynx_parallel.inputs.recognizers import (
    SCALES,
    Recognizer,
    RecognizerName,
    parse_recognizer,
    recognizer_mistake,
    with_files,
)
from lynx_parallel.inputs.weight_files import FaceFiles


@pytest.mark.parametrize(
    ("text", "recognizer"),
    [
        ("dlib", Recognizer("dlib")),
        ("sface:models/opencv", Recognizer("sface", "models/opencv")),
        ("insightface:C:/packs", Recognizer("insightface", "C:/packs")),
        ("arcface_ir_se50", Recognizer("arcface_ir_se50")),
    ],
)
def test_names(text: str, recognizer: Recognizer) -> None:
    assert parse_recognizer(text) == recognizer
    assert str(recognizer) == text


@pytest.mark.parametrize("text", ["", "facenet", "Dlib", ":x"])
def test_other_names(text: str) -> None:
    with pytest.raises(ValueError, match="must be one of dlib, insightface, sface, arcface_ir_se50, or NAME:PATH"):
        parse_recognizer(text)


def test_each_has_a_scale() -> None:
    assert set(SCALES) == set(RecognizerName.__args__)  # type: ignore[attr-defined]
    assert Recognizer("dlib").scale.threshold == 0.4


FACE = FaceFiles(Path("/packs/buffalo_l"), Path("/models/ir.pth"), None, 640, True)


def test_files_of_the_pipeline() -> None:
    assert with_files(Recognizer("insightface"), FACE).path == "/packs/buffalo_l"
    assert with_files(Recognizer("insightface", "/own"), FACE).path == "/own"
    assert with_files(Recognizer("arcface_ir_se50"), FACE) == Recognizer(
        "arcface_ir_se50", "/models/ir.pth", "/packs/buffalo_l"
    )
    for recognizer in (Recognizer("dlib"), Recognizer("sface", "/x")):
        assert with_files(recognizer, FACE) == recognizer
    assert with_files(Recognizer("insightface"), None) == Recognizer("insightface")


def test_mistakes(tmp_path: Path) -> None:
    assert recognizer_mistake(Recognizer("dlib")) == ""
    assert recognizer_mistake(Recognizer("sface")) == "recognizer sface: its files are not known: write sface:PATH"
    missing = tmp_path / "missing"
    assert recognizer_mistake(Recognizer("sface", str(missing))) == f"recognizer sface: {missing}: no such folder"
    assert recognizer_mistake(Recognizer("sface", str(tmp_path))).endswith(
        "must hold face_detection_yunet*.onnx and face_recognition_sface*.onnx"
    )
    for name in ("face_detection_yunet_2023mar.onnx", "face_recognition_sface_2021dec.onnx"):
        (tmp_path / name).touch()
    assert recognizer_mistake(Recognizer("sface", str(tmp_path))) == ""
    assert "needs the detector" in recognizer_mistake(Recognizer("arcface_ir_se50", str(tmp_path)))


def test_dlib_without_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    from lynx_parallel.inputs import recognizers

    monkeypatch.setattr(recognizers, "find_spec", lambda name: None)
    assert "pip install 'lynx-parallel[dlib]'" in recognizer_mistake(Recognizer("dlib"))
