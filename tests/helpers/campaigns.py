"""A small campaign that needs neither weights nor models: files made up, digests of weights given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.inputs.manifest import Campaign, Shot
from lynx_parallel.output.atomic import part_path
from lynx_parallel.output.folder import Output
from lynx_parallel.plan.digests import ShotDigests, shot_digests

WEIGHTS = {"base/vae/config.json": "a" * 64, "resampler": "b" * 64, "id": "c" * 64}

LITE = """\
version: 1
model:
  base: demo:tiny
  adapters: {resampler: demo:lite, id: demo:lite}
  dtype: float32
sampling: {width: 64, height: 48, num_frames: 9, guidance_scale_i: null}
video: {crf: 18}
"""
FULL = LITE.replace("id: demo:lite", "id: demo:full, ref: demo:full")
MANIFEST = """\
version: 1
pipeline: ./full.yaml
output: out
subjects:
  ada:
    image: ada.jpg
    embedding: ada.npy
    landmarks: [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]
    vars: {person: woman}
    labels: {team: red}
    consent: {ref: form-1, expires: 2027-01-31}
  bob:
    image: bob.jpg
    embedding: bob.npy
    landmarks: [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]
    vars: {person: man}
prompts: {walk: 'A {person} walks.', run: 'A {person} runs.'}
"""


def write(folder: Path, manifest: str = MANIFEST) -> Path:
    """The manifest's path; everything it names lies beside it."""
    (folder / "full.yaml").write_text(FULL)
    (folder / "lite.yaml").write_text(LITE)
    for number, name in enumerate(("ada", "bob"), start=1):
        (folder / f"{name}.jpg").write_bytes(f"picture of {name}".encode())
        np.save(folder / f"{name}.npy", np.arange(number, number + 512, dtype=np.float32))
    path = folder / "m.yaml"
    path.write_text(manifest)
    return path


def draw(folder: Path) -> None:
    """Puts pictures that can be read in the place of those that ``write`` made up."""
    for name, colour in (("ada", "red"), ("bob", "blue")):
        Image.new("RGB", (64, 48), colour).save(folder / f"{name}.jpg")


def load(folder: Path, manifest: str = MANIFEST, *overrides: str) -> Campaign:
    """The campaign of a manifest text, the files beside it as they are."""
    (folder / "m.yaml").write_text(manifest)
    return load_campaign(folder / "m.yaml", overrides)


def sidecar(identity: ShotDigests, outputs: Mapping[str, bytes]) -> dict[str, Any]:
    """What the driver hands to ``commit``, as far as plan reads it."""
    return {
        "digests": {"latents": identity.latents, "video": identity.video},
        "settings": dict(identity.settings),
        "encoding": dict(identity.encoding),
        "outputs": {
            kind: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for kind, content in outputs.items()
        },
    }


def contents(shot: Shot, word: str = "") -> dict[str, bytes]:
    """Made-up outputs of a shot; ``word`` makes them others of the same size."""
    return {kind: f"{kind} of {shot.name}{word}".encode() for kind in ("latents", "video")}


def finish(
    campaign: Campaign,
    shot: Shot,
    /,
    *,
    kinds: tuple[str, ...] = ("latents", "video"),
    word: str = "",
    video: bytes | None = None,
    weights: Mapping[str, str] = WEIGHTS,
    **more: Any,
) -> None:
    """Does to the output folder what the driver does when a shot is done.

    Args:
        video: content of the video file; None for that of ``contents``.
        more: further keys of the sidecar.
    """
    output = Output(campaign.output)
    made = {kind: content for kind, content in contents(shot, word).items() if kind in kinds}
    made |= {} if video is None else {"video": video}
    for kind, content in made.items():
        part = part_path(output.path(shot.name, kind))
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
    output.commit(shot.name, kinds, {**sidecar(shot_digests(campaign, shot, weights), made), **more})


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and mtime of every file below a folder."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def edit_sidecar(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
