"""Completes what a killed driver left undone. The sidecars alone decide what is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lynx_parallel.output.finished_latents import all_unpublished, unpublished_files
from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import History, Journal
from lynx_parallel.plan.plan import Item


def unsettled(output: Output, done: Sequence[Item], history: History) -> tuple[list[Item], set[Path]]:
    """Returns the finished shots that the journal lacks, and the files that they have made obsolete."""
    obsolete = output.resume_states()
    if obsolete:
        obsolete &= {output.resume_state(item.digests.resume) for item in done}
    if found := all_unpublished(output):
        obsolete |= found & {path for item in done for path in unpublished_files(output, item.shot.name)}
    return [item for item in done if item.digests.video not in history.done], obsolete


def settle(output: Output, done: Sequence[Item], history: History, journal: Journal) -> None:
    """Adds the finished shots to the journal, and removes the obsolete files."""
    unrecorded, obsolete = unsettled(output, done, history)
    journal.extend(
        {"event": "done", "name": item.shot.name, "video": item.digests.video, "recovered": True} for item in unrecorded
    )
    for path in obsolete:
        path.unlink(missing_ok=True)
