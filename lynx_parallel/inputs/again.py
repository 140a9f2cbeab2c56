"""Writes the manifest and the pipeline file that render one finished shot again. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.inputs.made_by import MadeBy
from lynx_parallel.inputs.manifest import Campaign, Shot
from lynx_parallel.inputs.records import read_record
from lynx_parallel.output.atomic import atomic_write
from lynx_parallel.text import shown_path


def shot_of(made: MadeBy) -> tuple[Campaign, Shot]:
    """Returns the recorded campaign of a video, and its shot with the seed that it was made with.

    Raises:
        InputErrors: no sidecar or no record of the run is found, or the recorded inputs are gone.
    """
    shown = shown_path(made.path)
    if made.output is None or made.sidecar is None:
        raise InputErrors([f"{shown}: no sidecar is beside it; name the output folder with --output"])
    run = str(made.sidecar.get("run", ""))
    record = read_record(made.output.record(run)) if run and "/" not in run else None
    if record is None:
        raise InputErrors([f"{shown}: the record of its run is missing: {shown_path(made.output.record(run))}"])
    campaign = load_campaign(record, [value for value in record.request.set if not value.startswith("output=")])
    for part in campaign.each:
        for shot in part.shots:
            if shot.name == made.name:
                return part, _as_made(shot, made.sidecar)
    raise InputErrors([f"{shown}: the recorded manifest has no shot {made.name}"])


def write_again(campaign: Campaign, shot: Shot, path: Path) -> list[Path]:
    """Writes a manifest for one shot, and its pipeline file beside it. Returns both paths.

    Raises:
        InputErrors: a file exists already.
        OSError: a file cannot be written.
    """
    pipeline = path.with_name(f"{path.stem}.pipeline.yaml")
    if lines := [f"{shown_path(one)}: exists already; choose another name with -o" for one in (path, pipeline)
                 if one.exists()]:  # fmt: skip
        raise InputErrors(lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(pipeline, _pipeline(campaign, shot), f"The pipeline of {path.name}.")
    _write(path, _manifest(campaign, shot, pipeline), f"Renders the shot {shot.name} again.")
    return [path, pipeline]


def _as_made(shot: Shot, sidecar: dict[str, Any]) -> Shot:
    """Returns a shot with the seed of its video. A take may have another seed by now."""
    from dataclasses import replace

    seed = sidecar["settings"].get("sampling.seed")
    return replace(shot, sampling=shot.sampling.model_copy(update={"seed": seed})) if isinstance(seed, int) else shot


def _pipeline(campaign: Campaign, shot: Shot) -> dict[str, Any]:
    spec = campaign.pipeline
    sampling = shot.sampling.model_dump(mode="json", exclude_defaults=True)
    sampling.pop("seed", None)
    return {
        "version": 1,
        "model": spec.model.model_dump(mode="json", exclude_defaults=True),
        **({"face": spec.face.model_dump(mode="json", exclude_defaults=True)} if spec.face else {}),
        "sampling": sampling,
        "video": spec.video.model_dump(mode="json", exclude_defaults=True),
    }


def _manifest(campaign: Campaign, shot: Shot, pipeline: Path) -> dict[str, Any]:
    person, consent = shot.subject, shot.subject.consent
    subject: dict[str, Any] = {name: str(path) for name in ("image", "embedding") if (path := getattr(person, name))}
    if person.landmarks:
        subject["landmarks"] = [list(point) for point in person.landmarks]
    if person.face != "largest":
        subject["face"] = person.face
    if consent:
        given = {"ref": consent.ref, "scope": consent.scope, "expires": consent.expires and str(consent.expires)}
        subject["consent"] = {name: value for name, value in given.items() if value}
    if person.labels:
        subject["labels"] = dict(person.labels)
    text = shot.text.replace("{", "{{").replace("}", "}}")  # its vars are filled in already
    entry: dict[str, Any] = {"subject": person.id, "prompt": shot.prompt.id, "takes": {shot.take: shot.seed}}
    if shot.start_image:
        entry["start_image"] = str(shot.start_image)
    return {
        "version": 1,
        "pipeline": f"./{pipeline.name}",
        "output": f"{pipeline.name.removesuffix('.pipeline.yaml')}-output",
        "subjects": {person.id: subject},
        "prompts": {shot.prompt.id: {"text": text}},
        "shots": [entry],
        "save_latents": campaign.save_latents,
    }


def _write(path: Path, content: dict[str, Any], comment: str) -> None:
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    with atomic_write(path) as part:
        part.write_text(f"# {comment}\n{text}", encoding="utf-8")
