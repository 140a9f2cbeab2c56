"""The keys ``quality`` and ``audition`` of a manifest: which videos are good enough, and which takes are finished.

Neither enters a digest. Imports neither torch nor Ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from lynx_parallel.inputs.recognizers import Recognizer, RecognizerName, parse_recognizer
from lynx_parallel.inputs.strict import Strict, must
from lynx_parallel.inputs.weight_names import resolve_file

DEFAULT_FRAMES = 16
"""Frames of a video that are scored."""

Similarity = Annotated[float, Field(ge=-1, le=1), must("a number from -1 to 1")]
Attempts = Annotated[int, Field(ge=1, le=100), must("a whole number from 1 to 100")]
FrameCount = Annotated[int, Field(ge=1, le=10_000), must("a whole number from 1 to 10000")]
Step = Annotated[int, Field(ge=1, le=999), must("a whole number from 1, below num_inference_steps")]
Keep = Annotated[int, Field(ge=1), must("a whole number from 1, below the number of takes")]
Choice = Literal["score", "person"]


def _named(text: str) -> str:
    parse_recognizer(text)
    return text


class QualityEntry(Strict):
    """The gate: a video that looks too little like the subject is rendered again, with another seed."""

    min_identity: Similarity | None = Field(
        default=None,
        description="Least mean identity score of a video that is good enough. By default the recognizer's threshold.",
    )
    recognizer: Annotated[
        str,
        AfterValidator(_named),
        must(f"one of {', '.join(get_args(RecognizerName))}, or NAME:PATH with the recognizer's files"),
    ] = Field(
        default="dlib",
        description="Recognizer that scores the videos: dlib, insightface, sface or arcface_ir_se50, or NAME:PATH "
        "with its files, relative to this file.",
    )
    attempts: Attempts = Field(
        default=3, description="Most renders of a shot. If none is good enough, the best one is kept."
    )
    frames: FrameCount = Field(default=DEFAULT_FRAMES, description="Frames of a video that are scored.")


class AuditionEntry(Strict):
    """An audition: all takes run to an early step, and only the chosen ones are finished."""

    step: Step = Field(description="the number of steps after which the takes are compared")
    keep: Keep = Field(default=1, description="Number of takes that are finished.")
    choose: Annotated[Choice, must("'score' or 'person'")] = Field(
        default="score",
        description="Who chooses: the identity score of the preview, or a person, with lynx-render reroll --review.",
    )


@dataclass(frozen=True, slots=True)
class Quality:
    """How the videos of a campaign are scored, and which are good enough.

    Attributes:
        min_identity: least mean score.
        attempts: most renders of a shot; 0 if videos are only scored, for an audition.
        frames: of a video that are scored.
    """

    recognizer: Recognizer
    min_identity: float
    attempts: int = 0
    frames: int = DEFAULT_FRAMES


@dataclass(frozen=True, slots=True)
class Audition:
    """The audition that a take goes through.

    Attributes:
        step: number of steps after which the takes are compared.
        keep: number of takes that are finished.
    """

    step: int
    keep: int = 1
    choose: Choice = "score"


def quality_of(entry: QualityEntry | None, folder: Path) -> Quality:
    """Returns the gate of a manifest. Without an entry, videos are scored with the defaults and never rejected.

    Args:
        folder: of the manifest, for the recogniser's path.
    """
    given = entry or QualityEntry()
    recognizer = parse_recognizer(given.recognizer)
    if recognizer.path:
        recognizer = Recognizer(recognizer.name, str(resolve_file(folder, recognizer.path)))
    least = recognizer.scale.threshold if given.min_identity is None else given.min_identity
    return Quality(recognizer, least, given.attempts if entry else 0, given.frames)


def audition_mistake(audition: Audition, takes: int, steps: int) -> str:
    """Returns why an audition cannot be held, or an empty text.

    Args:
        takes: number of takes.
        steps: ``num_inference_steps``.
    """
    if takes < 2:
        return "needs several takes: give takes or seeds"
    if audition.keep >= takes:
        return f"keep: {audition.keep} of {takes} takes: leaves nothing to choose"
    if audition.step >= steps:
        return f"step: {audition.step} of {steps}: must be below num_inference_steps"
    return ""
