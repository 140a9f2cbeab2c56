"""Finds which weights and face models of a pipeline are on this machine. Downloads nothing, imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lynx_parallel.demo.places import demo_root, facepack_root, is_built
from lynx_parallel.doctor.report import Weight
from lynx_parallel.inputs.licences import licence_of
from lynx_parallel.inputs.pipeline import ARCFACE, BUFFALO_L, DEMO_FACES, Adapters, FaceSpec
from lynx_parallel.inputs.pipeline_files import find_pipeline, load_pipeline
from lynx_parallel.inputs.weight_names import resolve_file
from lynx_parallel.plan.present_weights import cached, components, lacking, snapshot
from lynx_parallel.plan.weights import arcface_file, pack_folder, replaced_parts


def find_all(pipeline: str) -> list[Weight]:
    """Returns base, adapters and face models of a pipeline, each present or missing.

    Raises:
        InputErrors: the pipeline file is missing or wrong. Missing weights raise no error.
    """
    spec, file = load_pipeline(pipeline, resolve=False), find_pipeline(pipeline)
    finder = _Finder(pipeline, file.parent)
    replaced = replaced_parts(spec.model)
    found = [finder.base(spec.model.base, replaced)]
    for part in replaced:
        single = getattr(spec.model, part)
        found.append(finder.adapter(part, f"model.{part}", single.file, single.license))
    for name in Adapters.model_fields:
        if adapter := getattr(spec.model.adapters, name):
            found.append(finder.adapter(f"adapter {name}", f"model.adapters.{name}", adapter.file, adapter.license))
    found += [finder.adapter("LoRA", "model.loras", lora.file, lora.license) for lora in spec.model.loras]
    return [*found, *finder.face(spec.face)]


class _Finder:
    """Looks for what one pipeline file names; relative paths are relative to the file's folder."""

    def __init__(self, pipeline: str, folder: Path):
        self.folder = folder
        self.fetch = f"lynx-render fetch {pipeline} downloads it."

    def base(self, source: str, replaced: Sequence[str]) -> Weight:
        if source.startswith("demo:"):
            return _demo("base", source, demo_root())
        local = resolve_file(self.folder, source)
        if local.is_dir() or source.startswith((".", "/", "~")):
            remedy = "Put a Wan model in diffusers layout there, or correct model.base."
            return self._base_in(source, local if local.is_dir() else None, remedy, replaced)
        return self._base_in(source, snapshot(source), self.fetch, replaced)

    def _base_in(self, source: str, folder: Path | None, remedy: str, replaced: Sequence[str]) -> Weight:
        if folder is None:
            return _missing("base", source, "missing", remedy)
        names = components(folder)
        files = [path for name in names for path in (folder / name).rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        if parts := lacking(folder, replaced):
            more = f" and {len(parts) - 3} more" if len(parts) > 3 else ""
            return Weight(
                "base", source, False, size, licence_of(source), f"missing: {', '.join(parts[:3])}{more}", remedy
            )
        return Weight("base", source, True, size, licence_of(source), f"present in {folder}")

    def adapter(self, title: str, setting: str, source: str, licence: str | None) -> Weight:
        if source.startswith("demo:"):
            return _demo(title, source, demo_root(), licence)
        if source.startswith("hub:"):
            return self._file(title, source, cached(source), self.fetch, licence)
        path = resolve_file(self.folder, source)
        return self._file(title, source, path, f"Put the file there, or correct {setting}.", licence)

    def face(self, face: FaceSpec | None) -> list[Weight]:
        if face is None:
            return []
        places = {BUFFALO_L: pack_folder(), ARCFACE: arcface_file()}
        found = []
        for name, source in (("detector", face.detector), ("recognizer", face.recognizer)):
            if source == DEMO_FACES:
                found.append(_demo(f"face {name}", source, facepack_root()))
                continue
            remedy = self.fetch if source in places else f"Put the file there, or correct face.{name}."
            path = places.get(source) or resolve_file(self.folder, source)
            found.append(self._file(f"face {name}", source, path, remedy))
        return found

    def _file(self, name: str, source: str, path: Path | None, remedy: str, licence: str | None = None) -> Weight:
        if path is None:
            return _missing(name, source, "missing in the hub cache", remedy, licence)
        if not path.exists():
            return _missing(name, source, f"missing: {path}", remedy, licence)
        files = [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]
        size = sum(one.stat().st_size for one in files)
        if not size:
            return _missing(name, source, f"empty: {path}", remedy, licence)
        return Weight(name, source, True, size, licence or licence_of(source), f"present: {path}")


def _missing(name: str, source: str, detail: str, remedy: str, licence: str | None = None) -> Weight:
    return Weight(name, source, False, 0, licence or licence_of(source), detail, remedy)


def _demo(name: str, source: str, root: Path, licence: str | None = None) -> Weight:
    detail = f"present: {root}" if is_built(root) else "random weights, made at their first use"
    return Weight(name, source, True, 0, licence or licence_of(source), detail)
