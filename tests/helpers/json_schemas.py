"""Checks YAML files against our JSON schemas, as an editor does."""

from __future__ import annotations

from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from lynx_parallel.inputs.problems import Problems
from lynx_parallel.inputs.schema import schema
from lynx_parallel.inputs.yaml_lines import read_yaml


@cache
def validator(kind: str) -> Any:
    return Draft202012Validator(schema(kind))


def schema_mistakes(kind: str, file: Path) -> list[str]:
    """Returns the mistakes of a YAML file by its schema: ``path: message``."""
    document = read_yaml(file, Problems())
    assert document is not None
    found = validator(kind).iter_errors(_as_json(document.data))
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_json(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_as_json(one) for one in value]
    return value.isoformat() if isinstance(value, date) else value
