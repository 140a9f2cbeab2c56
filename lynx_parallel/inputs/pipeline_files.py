"""Reads pipeline files: the manifest's, the variants' own, and those that a command names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lynx_parallel.inputs.lost_text import warn_of_lost_text
from lynx_parallel.inputs.near_files import file_mistake, near_file
from lynx_parallel.inputs.pipeline import PipelineSpec, Video
from lynx_parallel.inputs.problems import KeyPath, Problems, nearest, shown_value
from lynx_parallel.inputs.shipped import shipped_dir, shipped_names
from lynx_parallel.inputs.sources import is_file
from lynx_parallel.inputs.validate import read_model
from lynx_parallel.inputs.weight_names import resolve_file, resolve_weights
from lynx_parallel.inputs.yaml_lines import Document, read_yaml
from lynx_parallel.text import shown_path


def find_pipeline(path: Path | str) -> Path:
    """Returns the file of a pipeline. A path is returned as it is; a bare name means a shipped pipeline.

    Raises:
        InputErrors: no shipped pipeline has this name, or there is no such file.
    """
    problems = Problems()
    if not is_bare(str(path)) or os.path.isfile(path):
        if not os.path.lexists(path):
            problems.option(f"{shown_path(path)}: no such pipeline file{near_file(path)}")
    elif str(path) not in shipped_names("pipelines"):
        shown, hint = shown_value(str(path)), nearest(str(path), shipped_names("pipelines"), "shipped")
        problems.option(f"pipeline {shown}: no shipped pipeline of that name; {hint}")
    else:
        return shipped_dir("pipelines") / f"{path}.yaml"
    problems.raise_if_any()
    return Path(path)


def load_pipeline(path: Path | str, *, resolve: bool = True) -> PipelineSpec:
    """Reads a pipeline file; a bare name means a shipped one. Local weights come back as absolute paths.

    Args:
        resolve: False leaves the names of weights as the file has them, and does not look for the files.

    Raises:
        InputErrors: all mistakes, one line each.
    """
    problems = Problems()
    spec = _read_pipeline(find_pipeline(path), problems, resolve)
    problems.raise_if_any()
    assert spec is not None
    return spec


def named_pipeline(document: Document, name: Any, key: KeyPath, problems: Problems) -> tuple[Path, PipelineSpec | None]:
    """Returns the pipeline file of a name and its content, or None if there was a mistake.

    Args:
        key: where the manifest names it.
    """
    if not isinstance(name, str) or not name.strip():
        return Path(), None  # read_model has said so
    if is_bare(name):
        path = shipped_dir("pipelines") / f"{name}.yaml"
        if name not in shipped_names("pipelines"):
            hint = nearest(name, shipped_names("pipelines"), "shipped")
            message = f"{shown_value(name)}: no shipped pipeline of that name; {hint}; a path needs a / or .yaml"
            document.blame(problems, key, message)
            return path, None
    else:
        path = resolve_file(document.file.parent, name)
        if not is_file(path):
            document.blame(problems, key, f"{shown_value(name)}: {file_mistake(path)}")
            return path, None
    return path, _read_pipeline(path, problems)


def _read_pipeline(path: Path, problems: Problems, resolve: bool = True) -> PipelineSpec | None:
    document = read_yaml(path, problems)
    if document:
        warn_of_lost_text(document, problems)
    spec = read_model(PipelineSpec, document, (), problems) if document else None
    return resolve_weights(spec, document, problems) if spec and document and resolve else spec


def is_bare(name: str) -> bool:
    return "/" not in name and not name.endswith((".yaml", ".yml"))


def video_of(pipeline: PipelineSpec, manifest: Video, forced: dict[str, Any], *, own: bool = False) -> Video:
    """Returns the settings of the video file.

    Args:
        manifest: the manifest's ``video``, which wins over the pipeline's.
        forced: those of ``--set``, which win over both.
        own: the pipeline is a variant's own. The manifest then fills in only what it does not set.
    """
    given = manifest.model_fields_set - (pipeline.video.model_fields_set if own else set())
    return pipeline.video.model_copy(update={**{name: getattr(manifest, name) for name in given}, **forced})
