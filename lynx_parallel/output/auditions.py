"""Auditions in an output folder: the preview of a take at an early step, and its score.

``<output>/.lynx/auditions/<shot>.json`` and ``.mp4``. Imports neither torch nor Ray.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from lynx_parallel.output.atomic import atomic_write
from lynx_parallel.output.scores import IdentityScore, identity_score
from lynx_parallel.output.sidecar import encode_text

AUDITION_VERSION = 1


@dataclass(frozen=True)
class AuditionRecord:
    """The audition of one take.

    Attributes:
        digest: of the take's settings, to which its resume state is bound, see ``ShotDigests.resume``.
        seed: of the take.
        step, total: step of the preview, and all steps.
        score: of the preview.
        video: sha256 of the preview.
        time: when it was made, ISO 8601.
    """

    digest: str
    seed: int
    step: int
    total: int
    score: IdentityScore
    video: str
    time: str

    @property
    def similarity(self) -> float | None:
        """Mean similarity of the preview; None without a face."""
        return self.score.mean


def read_audition(path: Path, digest: str | None = None) -> AuditionRecord | None:
    """Returns the audition in a file, or None if there is none that this version can read.

    Args:
        digest: of the take's current settings. The audition of other settings is not returned. None accepts any.
    """
    try:
        found = json.loads(path.read_bytes())
        if found["version"] != AUDITION_VERSION or digest not in (None, found["digest"]):
            return None
        known = {one.name: found[one.name] for one in fields(AuditionRecord)}
        return AuditionRecord(**{**known, "score": identity_score(found["score"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def write_audition(path: Path, record: AuditionRecord) -> None:
    """Writes an audition. It appears whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.write_bytes(
            encode_text(json.dumps({"version": AUDITION_VERSION, **asdict(record)}, ensure_ascii=False) + "\n")
        )
