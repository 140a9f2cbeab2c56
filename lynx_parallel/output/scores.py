"""Scores of videos: how much the face in each looks like the subject. ``<output>/.lynx/scores/<shot>.json`` holds them.

Imports neither torch nor Ray.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from lynx_parallel.output.atomic import replace_at_once
from lynx_parallel.output.sidecar import encode_text

SCORES_VERSION = 1

ScoreState = Literal["scored", "no face", "no reference"]


@dataclass(frozen=True)
class FrameScore:
    """The face of one sampled frame.

    Attributes:
        index: of the frame in the video, from 0.
        time: seconds from the video's beginning.
        similarity: to the reference picture, of the face that matches best; None if the frame has no face.
        faces: number of faces found.
        size: height of the face's box as a part of the frame's height; 0 without a face.
        yaw, pitch, roll: rough pose of the face in degrees, by its landmarks; 0 from the front.
    """

    index: int
    time: float
    similarity: float | None = None
    faces: int = 0
    size: float = 0.0
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0


@dataclass(frozen=True)
class IdentityScore:
    """How much the face of one video looks like the reference picture, by one recogniser.

    Attributes:
        recognizer: its name, see ``inputs.recognizers``.
        scale: meaning of a score, in words.
        threshold: score from which two pictures count as of the same person.
        state: ``no face``: in no sampled frame. ``no reference``: there is no face to compare with.
        mean, worst: similarity over the frames with a face; None without any.
        with_face: share of the sampled frames that have a face, 0 to 1.
        drift: change of the similarity from the first to the last frame, by a line fitted to the frames with a face;
            None with fewer than two.
        reference: sha256 of the reference picture or embedding.
        model: version or digest of the recogniser's files.
        frames: the sampled frames.
    """

    recognizer: str
    scale: str
    threshold: float
    state: ScoreState
    mean: float | None = None
    worst: float | None = None
    with_face: float = 0.0
    drift: float | None = None
    reference: str = ""
    model: str = ""
    frames: tuple[FrameScore, ...] = ()


@dataclass(frozen=True)
class ShotScores:
    """All scores of one video.

    Attributes:
        video: sha256 of the video file that was scored.
        identity: by recogniser.
        others: values of other scorers, by column, such as ``clip``; see the entry points ``lynx_parallel.scorers``.
    """

    video: str
    identity: Mapping[str, IdentityScore] = field(default_factory=dict)
    others: Mapping[str, float] = field(default_factory=dict)

    def with_identity(self, score: IdentityScore) -> ShotScores:
        """Returns the scores with one more recogniser's, or with its new one."""
        return ShotScores(self.video, {**self.identity, score.recognizer: score}, self.others)

    def with_other(self, name: str, value: float) -> ShotScores:
        """Returns the scores with the value of one more scorer, or with its new one."""
        return ShotScores(self.video, self.identity, {**self.others, name: value})


def read_scores(path: Path, video: str | None = None) -> ShotScores | None:
    """Returns the scores in a file, or None if there are none that this version can read.

    Args:
        video: sha256 of the current video. Scores of another video are not returned. None accepts any.
    """
    try:
        found = json.loads(path.read_bytes())
        if found["version"] != SCORES_VERSION or video not in (None, found["video"]):
            return None
        identity = {name: identity_score(one) for name, one in found["identity"].items()}
        return ShotScores(found["video"], identity, dict(found["others"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def identity_score(found: Mapping[str, Any]) -> IdentityScore:
    """Returns the score that a mapping describes. Raises TypeError or KeyError if it describes none."""
    frames = tuple(FrameScore(**_known(FrameScore, frame)) for frame in found["frames"])
    return IdentityScore(**_known(IdentityScore, {**found, "frames": frames}))


def write_scores(path: Path, scores: ShotScores) -> None:
    """Replaces the scores of a shot at once.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_at_once(path, encode_text(json.dumps({"version": SCORES_VERSION, **asdict(scores)}, ensure_ascii=False)))


def remove_scores(path: Path) -> None:
    """Removes the scores of a shot, if there are any."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def _known(kind: type[Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys that this version knows. A later version may add some."""
    names = {one.name for one in fields(kind)}
    return {key: value for key, value in found.items() if key in names}
