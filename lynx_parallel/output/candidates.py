"""Candidates: finished videos of a shot that were not good enough, one for each seed. Imports neither torch nor Ray.

The files of a candidate are ``<output>/.lynx/candidates/<shot>/s<seed>.mp4`` and so on, as those of a shot, with a
sidecar, scores and a poster. When a shot's last attempt is made, the best candidate becomes the shot.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from typing import Any

from lynx_parallel.output.atomic import move
from lynx_parallel.output.folder import Output
from lynx_parallel.output.sidecar import write_sidecar

KEPT = "kept"
"""Key in a candidate's ``quality``: it was chosen and becomes the shot. A killed driver may not have finished that."""


def candidate_name(name: str, seed: int) -> str:
    """Returns the name of a candidate's files, as a shot's name."""
    return f".lynx/candidates/{name}/s{seed}"


@dataclass(frozen=True)
class Candidate:
    """A candidate of a shot.

    Attributes:
        name: of the shot; ``own`` is that of the candidate's files.
        similarity: mean score; None without a face.
    """

    name: str
    seed: int
    similarity: float | None
    sidecar: dict[str, Any]

    @property
    def own(self) -> str:
        return candidate_name(self.name, self.seed)


def read_candidate(output: Output, name: str, seed: int, video: str) -> Candidate | None:
    """Returns the candidate of a seed, or None if it is missing, damaged, or of other settings.

    Args:
        video: digest of the video's settings.
    """
    own = candidate_name(name, seed)
    sidecar = output.sidecar(own)
    if sidecar is None or sidecar["digests"]["video"] != video or not isinstance(sidecar.get("quality"), dict):
        return None
    if not sidecar["quality"].get(KEPT) and not output.intact(own, sidecar, "video"):
        return None
    similarity = sidecar["quality"].get("mean")
    return Candidate(name, seed, similarity if isinstance(similarity, int | float) else None, sidecar)


def choose(output: Output, candidate: Candidate) -> Candidate:
    """Records that a candidate becomes the shot. From now on no other can, even if the process is killed.

    Raises:
        OSError: the sidecar cannot be written.
    """
    sidecar = {**candidate.sidecar, "quality": {**candidate.sidecar["quality"], KEPT: True}}
    write_sidecar(output.path(candidate.own, "sidecar"), sidecar)
    return replace(candidate, sidecar=sidecar)


def make_shot(output: Output, candidate: Candidate) -> None:
    """Makes a chosen candidate the shot. A repeated call completes what a killed process left undone.

    Old files of the shot are moved aside first.

    Raises:
        OSError: the files could not be published.
    """
    name, own, sidecar = candidate.name, candidate.own, candidate.sidecar
    to_move = [kind for kind in ("latents", "video") if os.path.lexists(output.path(own, kind))]
    old = output.sidecar(name)
    stale = ("sidecar",) if old is not None and old["digests"] != sidecar["digests"] else ()
    replaced = [kind for kind in to_move if os.path.lexists(output.path(name, kind))]
    if replaced or stale:  # a file that has been moved already must stay
        output.supersede(name, (*replaced, *stale))
    output.path(name, "video").parent.mkdir(parents=True, exist_ok=True)
    for kind in to_move:
        move(output.path(own, kind), output.path(name, kind))
    with contextlib.suppress(OSError):  # a report can do without
        for source, target in ((output.poster(own), output.poster(name)), (output.scores(own), output.scores(name))):
            if source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, target)
    outputs = {
        kind: {**facts, "file": output.path(name, kind).name, "mtime_ns": output.path(name, kind).stat().st_mtime_ns}
        for kind, facts in sidecar["outputs"].items()
    }
    write_sidecar(output.path(name, "sidecar"), {**sidecar, "name": name, "outputs": outputs})
    output.path(own, "sidecar").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        output.path(own, "sidecar").parent.rmdir()  # without other candidates


def has_candidates(output: Output, name: str) -> bool:
    """Returns whether a shot has candidates."""
    return (output.private / "candidates" / name).is_dir()


def chosen_candidate(output: Output, name: str) -> Candidate | None:
    """Returns the candidate that a killed driver had begun to make the shot, or None."""
    folder = output.private / "candidates" / name
    for path in sorted(folder.glob("s*.json")) if folder.is_dir() else ():
        seed = path.stem[1:]
        sidecar = output.sidecar(candidate_name(name, int(seed))) if seed.isdecimal() else None
        quality = None if sidecar is None else sidecar.get("quality")
        if sidecar is not None and isinstance(quality, dict) and quality.get(KEPT):
            return Candidate(name, int(seed), quality.get("mean"), sidecar)
    return None
