"""Reads ``variants:``: named changes of settings. Every shot is rendered once for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lynx_parallel.inputs.aliases import suggest
from lynx_parallel.inputs.entries import ID, ID_ALLOWED, VariantEntry
from lynx_parallel.inputs.manifest import Variant
from lynx_parallel.inputs.pipeline import PipelineSpec
from lynx_parallel.inputs.pipeline_files import named_pipeline
from lynx_parallel.inputs.problems import KeyPath, Problems, shown_value
from lynx_parallel.inputs.sampling import SamplingOverrides
from lynx_parallel.inputs.sections import section_ids
from lynx_parallel.inputs.validate import read_model
from lynx_parallel.inputs.yaml_lines import Document

_LISTS = ("identity_window", "sigmas", "timesteps")
"""Settings whose value is a list."""


class _Pipelines:
    """Reads the variants' own pipelines, each file once."""

    def __init__(self, document: Document, problems: Problems):
        self._document, self._problems = document, problems
        self._read: dict[str, tuple[Path | None, PipelineSpec | None]] = {}

    def of(self, variant: str, name: Any) -> tuple[Path | None, PipelineSpec | None]:
        """Returns the file and the content of a variant's own pipeline, or nothing for the campaign's."""
        if name is None:
            return None, None
        key: KeyPath = ("variants", variant, "pipeline")
        if not isinstance(name, str):
            shown = self._document.shown(key, name)
            self._document.blame(self._problems, key, f"{shown}: must be the name or the path of a pipeline")
            return None, None
        if name not in self._read:
            self._read[name] = named_pipeline(self._document, name, key, self._problems)
        return self._read[name]


def read_variants(document: Document, problems: Problems) -> tuple[Variant, ...]:
    """Returns the variants in their order. Without the section, that is one without a name or a change.

    A sweep ``ip: {sampling.ip_scale: [0.6, 0.8]}`` stands for the variants ``ip-0.6`` and ``ip-0.8``. Several swept
    settings give every combination. A sweep may name a pipeline beside them.
    """
    variants: list[Variant] = []
    pipelines = _Pipelines(document, problems)
    for name in section_ids(document, "variants", problems):
        entry = document.data["variants"][name]
        if isinstance(entry, dict) and any(isinstance(key, str) and key.startswith("sampling.") for key in entry):
            variants += _sweep(name, entry, document, pipelines, problems)
        elif made := read_model(VariantEntry, document, ("variants", name), problems):
            variants.append(Variant(name, made.sampling, *pipelines.of(name, made.pipeline)))
    seen: dict[str, Variant] = {}
    for variant in variants:
        if seen.setdefault(variant.id.casefold(), variant) is not variant:
            document.blame(problems, ("variants",), f"two variants get the id {variant.id!r} (case is ignored)")
    return tuple(variants) or (Variant(),)


def _sweep(
    name: str, entry: dict[str, Any], document: Document, pipelines: _Pipelines, problems: Problems
) -> Iterator[Variant]:
    before = len(problems)
    axes: list[list[tuple[str, Any]]] = []
    pipeline = pipelines.of(name, entry.get("pipeline"))
    for key, values in entry.items():
        if key == "pipeline":
            continue
        setting, path = key.removeprefix("sampling."), ("variants", name, key)
        known = [f"sampling.{field}" for field in SamplingOverrides.model_fields]
        if key not in known:
            document.blame(problems, path, f"unknown key; {suggest(key, known)}")
            continue
        kind = "a list of lists" if setting in _LISTS else "a list of values"
        if not isinstance(values, list) or not values or (setting in _LISTS and not isinstance(values[0], list)):
            document.blame(problems, path, f"{document.shown(path, values)}: must be {kind}: each is a variant")
            continue
        axes.append([(setting, value) for value in values])
        for value in values:
            if mistake := _mistake(setting, value):
                document.blame(problems, path, f"{shown_value(value)}: {mistake}")
    if len(problems) != before:
        return
    for values in product(*axes):
        id_ = "-".join([name, *(_as_id(value) for _, value in values)])
        if not ID.fullmatch(id_):
            document.blame(problems, ("variants", name), f"makes the id {shown_value(id_)}: {ID_ALLOWED}")
            return
        yield Variant(id_, SamplingOverrides.model_validate(dict(values)), *pipeline)


def _mistake(setting: str, value: Any) -> str | None:
    try:
        SamplingOverrides.model_validate({setting: value})
    except ValidationError as invalid:
        return invalid.errors(include_url=False)[0]["msg"]
    return None


def _as_id(value: Any) -> str:
    """Returns a value as a part of an id: ``[0, 0.5]`` as ``0-0.5``, ``dpm++`` as ``dpmpp``."""
    if isinstance(value, list):
        return "-".join(map(_as_id, value))
    text = "none" if value is None else str(value)
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "p" if c == "+" else "_" for c in text)
