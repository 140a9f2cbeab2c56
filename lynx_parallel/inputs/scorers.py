"""Scorers of other packages: columns of the benchmark beside the identity scores. Imports neither torch nor Ray.

A package registers one under the entry point group ``lynx_parallel.scorers``: a callable ``make(options, folder)`` that
returns a ``VideoScorer``. A manifest names those to use, with their options: ``scorers: {clip: {model: models/clip}}``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Protocol

from lynx_parallel.inputs.problems import Problems, nearest
from lynx_parallel.inputs.yaml_lines import Document

GROUP = "lynx_parallel.scorers"


class VideoScorer(Protocol):
    """Scores videos.

    Attributes:
        scale: meaning of a score, in words.
    """

    scale: str

    def score(self, video: Path, prompt: str, picture: Path | None) -> float:
        """Returns the score of a video.

        Args:
            video: an mp4 file.
            prompt: its text.
            picture: of the subject, if the manifest has one.
        """


@dataclass(frozen=True)
class ScorerSpec:
    """A scorer of a manifest.

    Attributes:
        name: of the entry point, and of the column.
        options: as JSON text, so that specs can be compared and hashed.
        folder: of the manifest, for paths among the options.
    """

    name: str
    options: str
    folder: Path

    def load(self) -> VideoScorer:
        """Loads the scorer. Raises whatever its package raises."""
        make = installed()[self.name].load()
        scorer: VideoScorer = make(json.loads(self.options), self.folder)
        return scorer


def installed() -> dict[str, EntryPoint]:
    """Returns the installed scorers by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


def read_scorers(document: Document, problems: Problems) -> tuple[ScorerSpec, ...]:
    """Returns the scorers that a manifest names."""
    data = document.data.get("scorers")
    if data is None:
        return ()
    if not isinstance(data, Mapping):
        document.blame(problems, ("scorers",), f"{document.shown(('scorers',), data)}: must be a mapping name: options")
        return ()
    known = dict(sorted(installed().items()))
    found = []
    for name, options in data.items():
        if name not in known:
            document.blame(
                problems, ("scorers", name), f"no such scorer is installed; {nearest(name, known, 'installed')}"
            )
        elif options is not None and not isinstance(options, Mapping):
            document.blame(problems, ("scorers", name), "must be a mapping of options")
        else:
            text = json.dumps(options or {}, sort_keys=True, default=str)
            found.append(ScorerSpec(name, text, document.file.absolute().parent))
    return tuple(found)
