"""Scores a video: how much the face in its frames looks like the reference picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lynx_parallel.inputs.quality import DEFAULT_FRAMES
from lynx_parallel.inputs.recognizers import Recognizer
from lynx_parallel.output.checksums import sha256_file
from lynx_parallel.output.scores import FrameScore, IdentityScore
from lynx_parallel.stages.sampled_frames import SampledFrame, sample_frames
from lynx_parallel.subject.picture import read_picture
from lynx_parallel.subject.recognition import RecognizedFace, choose_reference, load_recognition


class Scorer:
    """Scores videos with one recogniser. Loads its files once. One thread at a time may use it.

    Args:
        recognizer: with the paths of its files, see ``inputs.recognizers.with_files``.

    Raises:
        CheckpointError: the recogniser's files are missing or cannot be read.
        ClusterError: a package that it needs is not installed.
    """

    def __init__(self, recognizer: Recognizer):
        self.recognizer = recognizer
        self._recognition = load_recognition(recognizer)
        self._references: dict[tuple[str, object, str], RecognizedFace | None] = {}

    def score(
        self,
        video: Path,
        picture: Path,
        *,
        face: str | int = "largest",
        landmarks: Any = None,
        frames: int = DEFAULT_FRAMES,
    ) -> IdentityScore:
        """Returns the score of a video.

        Args:
            video: any file that ffmpeg reads.
            picture: the reference picture.
            face: which face of the picture is the subject's, see ``subject.detection.choose_face``.
            landmarks: of that face, if they are known.
            frames: most frames to score.

        Raises:
            SubjectError: the picture cannot be read, or has no face that ``face`` allows although it has some.
            RenderError: the video cannot be read.
        """
        digest = sha256_file(picture)
        reference = self._reference(picture, digest, face, landmarks)
        sampled = sample_frames(video, frames)
        if reference is None:
            return self._summary((), digest, state="no reference")
        return self._summary([self._frame(frame, reference) for frame in sampled], digest)

    def _reference(self, picture: Path, digest: str, face: str | int, landmarks: Any) -> RecognizedFace | None:
        """Returns the subject's face in its picture, or None if the recogniser finds none there."""
        key = digest, face, repr(landmarks)
        if key not in self._references:
            faces = self._recognition.faces(read_picture(picture))
            chosen = choose_reference(faces, face, landmarks, str(picture)) if faces else None
            self._references[key] = chosen
        return self._references[key]

    def _frame(self, frame: SampledFrame, reference: RecognizedFace) -> FrameScore:
        """Returns the score of a frame. Of several faces, the best match counts."""
        faces = self._recognition.faces(frame.image)
        time = round(frame.time, 3)
        if not faces:
            return FrameScore(frame.index, time)
        similarity, face = max(
            ((self._recognition.similarity(reference.descriptor, face.descriptor), face) for face in faces),
            key=lambda one: one[0],
        )
        size = (face.box[3] - face.box[1]) / frame.image.shape[0]
        return FrameScore(frame.index, time, round(similarity, 4), len(faces), round(size, 4), *face.pose)

    def _summary(self, frames: Sequence[FrameScore], reference: str, state: Any = None) -> IdentityScore:
        scale = self.recognizer.scale
        found = [(frame.time, frame.similarity) for frame in frames if frame.similarity is not None]
        values = [similarity for _, similarity in found]
        return IdentityScore(
            self.recognizer.name, scale.meaning, scale.threshold, state or ("scored" if found else "no face"),
            mean=round(float(np.mean(values)), 4) if values else None,
            worst=min(values, default=None),
            with_face=round(len(found) / len(frames), 4) if frames else 0.0,
            drift=drift([time for time, _ in found], values),
            reference=reference,
            model=self._recognition.model,
            frames=tuple(frames),
        )  # fmt: skip


def drift(times: Sequence[float], similarities: Sequence[float]) -> float | None:
    """Returns how much the similarity changes from the first to the last time, by a fitted line.

    Returns None with fewer than two times.
    """
    if len(set(times)) < 2:
        return None
    slope = np.polyfit(np.asarray(times), np.asarray(similarities), 1)[0]
    return round(float(slope * (max(times) - min(times))), 4)
