"""Names of weights in a pipeline file: files, hub ids and demo names, resolved to paths."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lynx_parallel.inputs.near_files import near_file
from lynx_parallel.inputs.pipeline import ARCFACE, BUFFALO_L, DEMO_FACES, AdapterFile, Adapters, FaceSpec, PipelineSpec
from lynx_parallel.inputs.problems import Problems, shown_value
from lynx_parallel.inputs.yaml_lines import Document

_DEMO = re.compile(r"demo:[a-z0-9-]+", re.ASCII)


_HUB_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*"


_HUB_ID = re.compile(_HUB_NAME + r"(@[A-Za-z0-9][A-Za-z0-9_./-]*)?", re.ASCII)


_HUB_FILE = re.compile(r"hub:" + _HUB_NAME + r"(@[A-Za-z0-9][A-Za-z0-9_.-]*)?((/[^/\s\\]+)+)", re.ASCII)


_BASE = "must be a hub id (org/name or org/name@revision), a folder or demo:tiny"


_NO_DEMO = "must be a .safetensors file or hub:org/repo/path/in/repo"


_FILE = "must be a .safetensors file, hub:org/repo/path/in/repo or demo:name"


def resolve_file(folder: Path, text: str) -> Path:
    """Returns the absolute path of ``text``, as a file in ``folder`` names it. ``~`` is the home folder.

    Links in the folders are resolved. The last name is kept, even of a link, because its suffix counts.
    """
    joined = os.path.join(os.path.abspath(folder), os.path.expanduser(text))
    head, tail = os.path.split(joined.rstrip("/") or "/")
    return Path(os.path.realpath(head)) / tail


def _find_base(text: str, folder: Path) -> tuple[str, str | None]:
    """Returns the resolved name, and what is wrong with it or None."""
    if text.startswith("demo:"):
        return text, None if _DEMO.fullmatch(text) else _BASE
    path = resolve_file(folder, text)
    if os.path.isdir(path):
        return str(path), None
    if text.startswith((".", "/", "~")):
        return text, "not a folder" if os.path.exists(path) else f"missing folder {path}{near_file(path)}"
    return text, None if _HUB_ID.fullmatch(text) else _BASE


def _find_adapter(text: str, folder: Path) -> tuple[str, str | None]:
    """Returns the resolved name, and what is wrong with it or None."""
    if text.startswith("demo:"):
        return text, None if _DEMO.fullmatch(text) else _FILE
    if text.startswith("hub:"):
        found = _HUB_FILE.fullmatch(text)
        plain = found is not None and not {".", ".."} & set(found[2].split("/"))
        return text, None if plain else _FILE
    path = resolve_file(folder, text)
    if os.path.isfile(path):
        return str(path), None
    if os.path.exists(path):
        return text, "not a regular file"
    if text.startswith((".", "/", "~")) or text.endswith(".safetensors"):
        return text, f"missing file {path}{near_file(path)}"
    return text, _FILE


def resolve_weights(spec: PipelineSpec, document: Document, problems: Problems) -> PipelineSpec:
    """Returns the spec with local weights as absolute paths. Records missing files. Does not ask the hub."""
    folder = document.file.parent
    base, wrong = _find_base(spec.model.base, folder)
    if wrong:
        document.blame(problems, ("model", "base"), f"{shown_value(spec.model.base)}: {wrong}")
    model = spec.model

    def resolve(entry: AdapterFile, *path: str | int, demo: bool = False) -> AdapterFile:
        found, wrong = _find_adapter(entry.file, folder)
        if wrong is None and found.startswith("demo:") and not demo:
            wrong = _NO_DEMO
        if wrong:
            at = document.standing(("model", *path, "file"))
            document.blame(problems, at, f"{shown_value(entry.file)}: {wrong}")
        return entry.model_copy(update={"file": found})

    given = {name: getattr(model.adapters, name) for name in Adapters.model_fields}
    files = {name: resolve(entry, "adapters", name, demo=True) for name, entry in given.items() if entry}
    update = {
        "base": base,
        "adapters": model.adapters.model_copy(update=files),
        "transformer": model.transformer and resolve(model.transformer, "transformer"),
        "transformer_2": model.transformer_2 and resolve(model.transformer_2, "transformer_2"),
        "loras": tuple(resolve(lora, "loras", i) for i, lora in enumerate(model.loras)),
    }
    if spec.face is not None:
        spec = spec.model_copy(update={"face": _resolve_face(spec.face, document, problems)})
    return spec.model_copy(update={"model": model.model_copy(update=update)})


def _resolve_face(face: FaceSpec, document: Document, problems: Problems) -> FaceSpec:
    update: dict[str, str] = {}
    for name in ("detector", "recognizer"):
        text: str = getattr(face, name)
        if text in (DEMO_FACES, BUFFALO_L if name == "detector" else ARCFACE):
            continue
        path = resolve_file(document.file.parent, text)
        if not os.path.exists(path):
            document.blame(problems, ("face", name), f"{shown_value(text)}: missing {path}{near_file(path)}")
        update[name] = str(path)
    return face.model_copy(update=update)
