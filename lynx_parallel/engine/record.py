"""Writes the record of a run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lynx_parallel
from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.content import content_digest
from lynx_parallel.inputs.records import RECORD_VERSION, RUN_FILE, Request
from lynx_parallel.inputs.shipped import shipped_dir
from lynx_parallel.output.atomic import atomic_write
from lynx_parallel.plan.digests import NUMERICS

if TYPE_CHECKING:
    from lynx_parallel.inputs.manifest import Campaign
    from lynx_parallel.plan.parts import Part


_PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "ray", "xfuser", "numpy")


def write_record(folder: Path, campaign: Campaign, parts: Sequence[Part], request: Request, started: str) -> None:
    """Writes the record of a run that begins.

    Args:
        folder: of the record. It is created.
        parts: of the campaign, one for each pipeline.
        started: time, ISO 8601.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = {RUN_FILE}
    files = []
    for path, content in campaign.sources.items():
        name = next(name for name in _free_names(path.name) if name not in names)
        names.add(name)
        (folder / name).write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        files.append({"path": str(path), "copy": name, "sha256": sha256, "shipped": _is_shipped(path)})
    subjects = {shot.subject.id: shot.subject for shot in campaign.shots}.values()
    pictures = [path for subject in subjects for path in (subject.image, subject.embedding)]
    given = dict.fromkeys(path for path in (*pictures, *(shot.start_image for shot in campaign.shots)) if path)
    record = {
        "version": RECORD_VERSION,
        "started": started,
        "command": list(request.command),
        "working_folder": os.getcwd(),
        "manifest": os.path.abspath(campaign.path),
        "output": str(campaign.output),
        "set": list(request.set),
        "only": list(request.only),
        "options": [list(option) for option in request.options],
        "files": files,
        "pictures": [{"path": str(path), "sha256": _digest_or_none(path)} for path in given],
        **_of_pipeline(next((part for part in parts if _is_own(part, campaign)), parts[0])),
        **({"pipelines": [_of_pipeline(part) for part in parts]} if len(parts) > 1 else {}),
        "versions": {
            "lynx_parallel": lynx_parallel.__version__,
            "numerics": NUMERICS,
            "python": platform.python_version(),
            **dict(_versions()),
        },
    }
    with atomic_write(folder / RUN_FILE) as part:
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        part.write_bytes(text.encode(errors="backslashreplace"))


def _of_pipeline(part: Part) -> dict[str, Any]:
    """Returns what is recorded of a pipeline. Its file is among the copies."""
    settings = part.campaign.pipeline.model_dump(mode="json")
    path = os.path.abspath(part.campaign.pipeline_path)
    return {"pipeline": path, "weights": dict(part.digests), "settings": settings}


def _is_own(part: Part, campaign: Campaign) -> bool:
    return part.campaign.pipeline_path == campaign.pipeline_path


def _free_names(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{number}-{name}"
        number += 1


def _is_shipped(path: Path) -> bool:
    return path.parent == shipped_dir("pipelines")


def _digest_or_none(path: Path) -> str | None:
    try:
        return content_digest(path)
    except InputErrors:
        return None


def _versions() -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
