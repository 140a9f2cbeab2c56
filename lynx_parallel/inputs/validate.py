"""Validates a parsed file with the strict models, and reports every mistake in plain words with its line."""

from __future__ import annotations

import typing
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lynx_parallel.inputs.aliases import suggest
from lynx_parallel.inputs.problems import KeyPath, Problems
from lynx_parallel.inputs.yaml_lines import Document

Model = TypeVar("Model", bound=BaseModel)


_KINDS = {
    "model_type": "a mapping (key: value)",
    "dict_type": "a mapping (key: value)",
    "list_type": "a list",
    "tuple_type": "a list",
    "too_short": "a list with at least one item",
    "bool_type": "true or false",
    "string_type": "text",
}


def model_at(model: Any, loc: tuple[str | int, ...]) -> type[BaseModel] | None:
    """Returns the model of the mapping at ``loc``, through optional, dict and list types."""
    options = [model, *typing.get_args(model)]
    found = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
    if found is None:
        inner = [o for o in options[1:] if typing.get_args(o)]
        return model_at(inner[0], loc) if inner else None
    if not loc:
        return found
    fields = found.model_fields
    return model_at(fields[str(loc[0])].annotation, loc[1:]) if loc[0] in fields else None


def explain(error: ErrorDetails, shown: str, model: type[BaseModel] | None = None) -> str:
    """Returns a pydantic error in plain words: ``<value>: must be …``, ``missing: …`` or ``unknown key; …``."""
    kind, loc = error["type"], error["loc"]
    parent = model_at(model, loc[:-1]) if model and loc else None
    fields = {field.alias or name: field for name, field in parent.model_fields.items()} if parent else {}
    if kind == "extra_forbidden":
        return f"unknown key; {suggest(str(loc[-1]), fields)}"
    if kind == "missing":
        about = fields[str(loc[-1])].description if fields else None
        return f"missing: {about}" if about else "missing"
    if kind == "must":
        return f"{shown}: {error['msg']}"
    if kind == "string_type" and not isinstance(error["input"], dict | list | tuple) and shown != "null":
        return f'{shown}: must be text; quote it: "{shown}"'
    return f"{shown}: must be {_KINDS[kind]}" if kind in _KINDS else f"{shown}: {error['msg'].lower()}"


def read_model(model: type[Model], document: Document, path: KeyPath, problems: Problems) -> Model | None:
    """Validates the mapping at ``path``; records every mistake and returns None when there is any."""
    data = document.data
    for part in path:
        data = data[part]
    try:
        return model.model_validate(data)
    except ValidationError as invalid:
        for error in invalid.errors(include_url=False):
            at = (*path, *error["loc"])
            if error["type"] != "missing":  # a short form ("text" for {text: …}) has no such key
                at = document.standing(at)
            document.blame(problems, at, explain(error, document.shown(at, error["input"]), model))
    return None
