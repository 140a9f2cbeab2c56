"""Recognisers that score how much a face in a video looks like the subject. Imports neither torch nor Ray.

Scores of different recognisers have different scales. They are never compared with each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

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
    """

    name: RecognizerName
    path: str = ""

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
