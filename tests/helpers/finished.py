"""Output folders with finished shots, without a render."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lynx_parallel.inputs.manifest import Campaign, Shot
from lynx_parallel.output.folder import Output
from tests.helpers.campaigns import MANIFEST, draw, finish, load, write


def ids_of(shot: Shot) -> dict[str, Any]:
    """What the sidecar says under ``shot``."""
    ids = {"subject": shot.subject.id, "prompt": shot.prompt.id, "take": shot.take, "seed": shot.seed}
    return ids | ({"variant": shot.variant} if shot.variant else {})


def finished_campaign(folder: Path, manifest: str = MANIFEST) -> tuple[Campaign, Output]:
    """Makes a campaign in a folder, with every shot finished. Its videos are short made-up texts."""
    write(folder, manifest)
    draw(folder)
    campaign = load(folder, manifest)
    for shot in campaign.shots:
        finish(campaign, shot, name=shot.name, shot=ids_of(shot))
    output = Output(campaign.output)
    output.private.mkdir()
    output.journal.touch()
    return campaign, output
