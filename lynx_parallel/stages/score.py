"""Scores a video: how much the face in its frames looks like the reference picture."""

from __future__ import annotations

from pathlib import Path

from lynx_parallel.inputs.recognizers import Recognizer
from lynx_parallel.output.scores import IdentityScore

FRAMES = 16
"""Frames of a video that are scored, at equal distances, the first and the last among them."""


class Scorer:
    """Scores videos with one recogniser. Loads the recogniser's files once; usable from one thread at a time.

    Args:
        recognizer: with the path of its files, if it needs one.

    Raises:
        CheckpointError: the recogniser's files are missing or cannot be read.
        ClusterError: a package that it needs is not installed.
    """

    def __init__(self, recognizer: Recognizer):
        self.recognizer = recognizer

    def score(self, video: Path, picture: Path, *, face: str | int = "largest", frames: int = FRAMES) -> IdentityScore:
        """Returns the score of a video.

        Args:
            video: any file that ffmpeg reads.
            picture: the reference picture.
            face: which face of the picture is the subject's, see ``subject.detection.choose_face``.
            frames: most frames to score.

        Raises:
            SubjectError: the picture cannot be read.
            RenderError: the video cannot be read.
        """
        raise NotImplementedError
