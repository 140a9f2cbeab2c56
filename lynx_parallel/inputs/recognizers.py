"""Recognisers that score how much a face in a video looks like the subject. Imports neither torch nor Ray.

Scores of different recognisers have different scales. They are never compared with each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from lynx_parallel.inputs.weight_files import FaceFiles

RecognizerName = Literal["dlib", "insightface", "sface", "arcface_ir_se50"]


@dataclass(frozen=True)
class Scale:
    """The scale of a recogniser's scores.

    Attributes:
        meaning: of a score, in words.
        threshold: score from which two pictures count as of the same person, by the recogniser's authors.
        note: what a reader of the scores must know; may be empty.
    """

    meaning: str
    threshold: float
    note: str = ""


SCALES: dict[RecognizerName, Scale] = {
    "dlib": Scale("1 − Euclidean distance", 0.4),
    "insightface": Scale("cosine similarity", 0.4),
    "sface": Scale("cosine similarity", 0.363),
    "arcface_ir_se50": Scale("cosine similarity", 0.4, "the network that the model was conditioned on"),
}


@dataclass(frozen=True)
class Recognizer:
    """A recogniser of a manifest or of an option: ``dlib``, or ``NAME:PATH`` with its files.

    Attributes:
        path: pack, folder or file; empty for that of the pipeline, or for files of an installed package.
        detector: that of the pipeline, for a recogniser without one of its own; empty until ``with_files``.
    """

    name: RecognizerName
    path: str = ""
    detector: str = ""

    @property
    def scale(self) -> Scale:
        return SCALES[self.name]

    def __str__(self) -> str:
        return f"{self.name}:{self.path}" if self.path else self.name


def parse_recognizer(text: str) -> Recognizer:
    """Returns the recogniser that a text names.

    Raises:
        ValueError: no such recogniser.
    """
    name, _, path = text.partition(":")
    for known in get_args(RecognizerName):
        if name == known:
            return Recognizer(known, path)
    raise ValueError(f"must be one of {', '.join(get_args(RecognizerName))}, or NAME:PATH")


DLIB_REMEDY = "recognizer dlib: its packages are not installed: pip install 'lynx-parallel[dlib]'"


def with_files(recognizer: Recognizer, face: FaceFiles | None) -> Recognizer:
    """Returns the recogniser with the files that it takes from the pipeline, if the manifest names none.

    Args:
        face: face models of the pipeline; None without any.
    """
    if face is None or recognizer.name not in ("insightface", "arcface_ir_se50"):
        return recognizer
    own = face.detector if recognizer.name == "insightface" else face.recognizer
    return replace(recognizer, path=recognizer.path or str(own), detector=str(face.detector))


def recognizer_mistake(recognizer: Recognizer) -> str:
    """Returns why a recogniser of ``with_files`` cannot be used here, or an empty text. Loads nothing."""
    name, path = recognizer.name, Path(recognizer.path)
    if name == "dlib":
        missing = any(find_spec(package) is None for package in ("dlib", "face_recognition_models"))
        return DLIB_REMEDY if missing else ""
    if not recognizer.path:
        return f"recognizer {name}: its files are not known: write {name}:PATH"
    if not path.exists():
        return f"recognizer {name}: {path}: no such {'file' if name == 'arcface_ir_se50' else 'folder'}"
    if name == "sface" and None in sface_files(path):
        return f"recognizer sface: {path}: must hold face_detection_yunet*.onnx and face_recognition_sface*.onnx"
    if name == "arcface_ir_se50" and not recognizer.detector:
        return "recognizer arcface_ir_se50: needs the detector of a pipeline with a section face"
    return ""


def sface_files(folder: Path) -> tuple[Path | None, Path | None]:
    """Returns the detector and the recogniser of OpenCV's SFace in a folder, each None if it is missing."""
    detectors, recognizers = folder.glob("face_detection_yunet*.onnx"), folder.glob("face_recognition_sface*.onnx")
    return max(detectors, default=None), max(recognizers, default=None)
