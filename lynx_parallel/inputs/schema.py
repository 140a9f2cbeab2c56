"""JSON Schema (draft 2020-12) of the files that users write, for editors. It lacks checks that need other files.

Names, types, ranges, defaults and descriptions are those of the models that read the files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from lynx_parallel.inputs.entries import (
    ID,
    ManifestFile,
    PromptEntry,
    ShotEntry,
    SubjectEntry,
    SubjectsFrom,
    TableEntry,
    VariantEntry,
)
from lynx_parallel.inputs.pipeline import PipelineSpec
from lynx_parallel.inputs.sampling import SamplingOverrides
from lynx_parallel.inputs.shipped import shipped_dir, shipped_names
from lynx_parallel.inputs.site import SiteFile
from lynx_parallel.inputs.strict import ALLOWED, Strict
from lynx_parallel.inputs.takes_file import TakesFile

FILES: dict[str, tuple[type[Strict], tuple[type[Strict], ...]]] = {
    "manifest": (
        ManifestFile,
        (SubjectEntry, SubjectsFrom, PromptEntry, VariantEntry, ShotEntry, TableEntry, SamplingOverrides),
    ),
    "pipeline": (PipelineSpec, ()),
    "takes": (TakesFile, ()),
    "site": (SiteFile, ()),
}
"""The model of each kind of file, and models of sections that it reads entry by entry."""
MODELINE = "# yaml-language-server: $schema="
"""Beginning of the comment by which editors with the YAML language server find the schema of a file."""


def schema(kind: str) -> dict[str, Any]:
    """Returns the JSON schema of a kind of file: a key of ``FILES``."""
    top, others = FILES[kind]
    _, definitions = models_json_schema([(model, "validation") for model in (top, *others)])
    models = definitions["$defs"]
    made = models.pop(top.__name__)
    if top is ManifestFile:
        made["properties"]["pipeline"]["examples"] = shipped_names("pipelines")
        for section, content in _sections(models).items():
            made["properties"][section].update(content)
    head = {"$schema": GenerateJsonSchema.schema_dialect, "title": f"lynx-render {kind}"}
    return {**head, **_finished({**made, "$defs": models})}


def schema_text(kind: str) -> str:
    """Returns the JSON schema as the text of its file."""
    return json.dumps(schema(kind), indent=2, ensure_ascii=False) + "\n"


def modeline(kind: str) -> str:
    """Returns the comment that names the shipped schema on this machine, for a file that may be in any folder."""
    return f"{MODELINE}{Path(shipped_dir('schemas') / f'{kind}.json').as_uri()}"


def _sections(models: dict[str, Any]) -> dict[str, Any]:
    """Returns what is in the sections that are read entry by entry."""
    sweep = {
        f"sampling.{name}": {
            "type": "array", "minItems": 1, "description": f"One variant for each value of {name}.",
            "items": {"$ref": f"#/$defs/{SamplingOverrides.__name__}/properties/{name}"},
        }
        for name in SamplingOverrides.model_fields
    }  # fmt: skip
    sweeps = {
        "type": "object",
        "properties": {"pipeline": models["VariantEntry"]["properties"]["pipeline"], **sweep},
        "additionalProperties": False,
    }
    some = {"type": "object", "minProperties": 1, "propertyNames": {"pattern": f"^{ID.pattern}$"}}
    is_sweep = {"type": "object", "patternProperties": {r"^sampling\.": False}}
    from_pictures = {"required": ["from"], "properties": {"from": {"not": {"type": "object"}}}}
    return {
        "subjects": {
            "type": "object",
            "if": from_pictures,
            "then": _ref(SubjectsFrom),
            "else": {**some, "additionalProperties": _ref(SubjectEntry)},
        },
        "prompts": {**some, "additionalProperties": _either("string", {}, _ref(PromptEntry))},
        "variants": {
            **some,
            "additionalProperties": {
                "type": ["object", "null"],
                "if": {"not": is_sweep, "type": "object"},
                "then": sweeps,
                "else": {"anyOf": [_ref(VariantEntry), {"type": "null"}]},
            },
        },
        "shots": {
            "type": ["array", "object"],
            **_either("object", _ref(TableEntry), {"type": "array", "items": _ref(ShotEntry), "minItems": 1}),
        },
    }


def _ref(model: type[Strict]) -> dict[str, str]:
    return {"$ref": f"#/$defs/{model.__name__}"}


def _either(kind: str, then: dict[str, Any], otherwise: dict[str, Any]) -> dict[str, Any]:
    """Returns a choice by type. An editor then reports the mistakes of one of the two, unlike with ``anyOf``."""
    return {"if": {"type": kind}, "then": then, "else": otherwise}


def _finished(part: Any) -> Any:
    """Returns a part of a schema with whole sentences for descriptions, and without what says nothing."""
    if isinstance(part, list):
        return [_finished(one) for one in part]
    if not isinstance(part, dict):
        return part
    made = {key: _finished(value) for key, value in part.items() if not _says_nothing(key, value)}
    allowed = part.get(ALLOWED) or next((one[ALLOWED] for one in part.get("anyOf", ()) if ALLOWED in one), None)
    if isinstance(about := part.get("description"), str):
        made["description"] = _in_sentences(about, allowed)
    return made


def _says_nothing(key: str, value: Any) -> bool:
    """Returns whether an entry is a title, which repeats the name, a default of no value, or ours alone."""
    if key == "default":
        return value is None or isinstance(value, dict)
    return key == ALLOWED or (key == "title" and isinstance(value, str))


def _in_sentences(about: str, allowed: str | None) -> str:
    """Returns a description, the first paragraph of a docstring or a phrase, and what is allowed."""
    text = " ".join(about.partition("\n\n")[0].split()).replace("``", "`")
    text = text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")
    return text if not allowed or "Must be" in text else f"{text} Must be {allowed}."
