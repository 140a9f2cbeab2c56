"""Finds which weights of a pipeline are on this machine. Asks no network, imports no torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.base_parts import base_parts
from lynx_parallel.inputs.pipeline import FaceSpec, ModelSpec
from lynx_parallel.inputs.weight_files import COMPONENTS, EXPERTS, FaceFiles, WeightFiles
from lynx_parallel.plan.weights import (
    face_files,
    find_adapter,
    find_base,
    hub_base,
    hub_file,
    replaced_parts,
    weight_files,
)

_WEIGHTS = (".safetensors", ".bin")
_WITH_WEIGHTS = (*EXPERTS.values(), "text_encoder", "vae", "image_encoder")


@dataclass(frozen=True)
class Missing:
    """A part of a pipeline that is not on this machine.

    Attributes:
        name: what the pipeline calls it, or its path.
        why: what is missing.
        comes_by: what brings it: ``render`` or ``fetch``, which downloads it, or ``hand``.
    """

    name: str
    why: str
    comes_by: Literal["render", "fetch", "hand"]

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


@dataclass(frozen=True)
class Present:
    """The weights and face models that are on this machine.

    Attributes:
        weights, face: their paths. Those of missing parts lead nowhere, or to an incomplete folder.
        missing: all parts that are missing, in the pipeline's order.
    """

    weights: WeightFiles
    face: FaceFiles | None
    missing: tuple[Missing, ...]


def find_present(model: ModelSpec, face: FaceSpec | None) -> Present:
    """Looks for the weights and face models of a pipeline. Makes the demo's (9 MB) where a pipeline names them.

    Args:
        face: None if no face model is needed.

    Raises:
        CheckpointError: an unknown ``demo:`` name.
        ClusterError: no place for the demo's files.
    """
    missing: list[Missing] = []

    def adapter(file: str, stem: str) -> Path:
        if hub_file(file) is None:
            return find_adapter(file, stem)  # resolve_weights has checked local files
        if (path := cached(file)) is None:
            missing.append(Missing(file, "not on this machine", "render"))
        return path or Path(file)

    base = _base(model.base, missing, replaced_parts(model))
    weights = weight_files(model, base, adapter)
    files = None if face is None else face_files(face)
    if face is not None and files is not None:
        for path, what in ((files.detector, face.detector), (files.recognizer, face.recognizer)):
            if not path.exists():
                missing.append(Missing(what, f"missing: {path}", "fetch"))
    return Present(weights, files, tuple(missing))


def _base(name: str, missing: list[Missing], replaced: Sequence[str]) -> Path:
    if name.startswith("demo:"):
        return find_base(name)
    if hub_base(name) is None:
        base = find_base(name)
        hint = f"missing: is {base} a Wan model in diffusers layout?"
        missing += [Missing(str(base / part), hint, "hand") for part in lacking(base, replaced)]
        return base
    folder = snapshot(name)
    if folder is None:
        missing.append(Missing(name, "not on this machine", "render"))
    elif parts := lacking(folder, replaced):
        more = f" and {len(parts) - 3} more" if len(parts) > 3 else ""
        missing.append(Missing(name, f"incomplete on this machine: missing {', '.join(parts[:3])}{more}", "render"))
    return folder or Path(name)


def snapshot(source: str) -> Path | None:
    """Returns the folder of a model in the hub cache, whole or not, or None."""
    from huggingface_hub import try_to_load_from_cache

    # snapshot_download(local_files_only=True) raises for folders without the files that BASE_PATTERNS leaves out.
    repo, _, revision = source.partition("@")
    for name in ("model_index.json", *(f"{part}/config.json" for part in COMPONENTS)):
        found = try_to_load_from_cache(repo, name, revision=revision or None)
        if isinstance(found, str):
            return Path(found.removesuffix(name))
    return None


def cached(source: str) -> Path | None:
    """Returns the path of an adapter ``hub:org/repo/path`` in the hub cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    if (named := hub_file(source)) is None:
        return None
    repo, revision, file = named
    found = try_to_load_from_cache(repo, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def lacking(base: Path, replaced: Collection[str] = ()) -> list[str]:
    """Returns what is missing from a model in diffusers layout: components, or files that an index names.

    Args:
        replaced: transformers that single files replace, whose weights are not needed.
    """
    found = []
    for component in components(base):
        folder = base / component
        present = {path.name for path in folder.iterdir() if path.is_file()} if folder.is_dir() else set()
        needed = _shards(folder / name for name in present if name.endswith(".index.json"))
        if not present:
            found.append(component)
        elif component in _WITH_WEIGHTS and component not in replaced:
            # With an index, all of its files must be present. Without one, the model is a single file.
            if not needed and not any(name.endswith(_WEIGHTS) for name in present):
                found.append(f"{component}/*.safetensors")
            found += [f"{component}/{name}" for name in sorted(needed - present)]
    return found


def components(base: Path) -> tuple[str, ...]:
    """Returns the folders that a base has, as far as ``model_index.json`` can be read. ``base_mistakes`` reports it."""
    try:
        return base_parts(base).components
    except CheckpointError:
        return COMPONENTS


def _shards(indexes: Iterable[Path]) -> set[str]:
    names: set[str] = set()
    for index in indexes:
        try:
            names |= set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            names.add(f"{index.name} (not readable)")
    return names
