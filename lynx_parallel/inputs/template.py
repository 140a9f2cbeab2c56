"""Prompt templates: text with ``{var}`` and ``{var|default}`` fields; ``{{`` and ``}}`` stand for braces."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from lynx_parallel.inputs.entries import VAR
from lynx_parallel.inputs.problems import shown_value

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_BRACES = "write {{ and }} for braces"


class Field(NamedTuple):
    """One ``{name}`` or ``{name|default}``; ``default`` is None if it is missing."""

    name: str
    default: str | None


@lru_cache(maxsize=1024)
def _parts(text: str) -> tuple[str | Field, ...]:
    """Yields literal texts and fields, in order.

    Raises:
        ValueError: with what is wrong.
    """
    parts: list[str | Field] = []
    end = 0
    for token in _TOKEN.finditer(text):
        parts.append(text[end : token.start()])
        end = token.end()
        if token[1] is not None:
            name, bar, default = token[1].partition("|")
            if not VAR.fullmatch(name):
                shown = shown_value(token[0])
                raise ValueError(f"{shown}: only {{name}} and {{name|default}} fields work; {_BRACES}")
            parts.append(Field(name, default if bar else None))
        elif len(token[0]) == 2:
            parts.append(token[0][0])
        else:
            raise ValueError(f"a single {token[0]!r}: {_BRACES}")
    return (*parts, text[end:])


def template_mistake(text: str) -> str | None:
    """Returns what is wrong with a template, whatever the subject; None when nothing is."""
    try:
        _parts(text)
    except ValueError as error:
        return str(error)
    return None


def template_fields(text: str) -> list[Field]:
    """Returns the fields of a valid template, in order."""
    return [part for part in _parts(text) if isinstance(part, Field)]


def template_words(text: str) -> str:
    """Returns a valid template as words: its fields by name, without braces and defaults."""
    return "".join(part.name if isinstance(part, Field) else part for part in _parts(text))


def unknown_vars(text: str, known: Mapping[str, str]) -> list[str]:
    """Returns the fields of a valid template that have no default and that ``known`` lacks, each once."""
    names = [field.name for field in template_fields(text) if field.default is None]
    return [name for name in dict.fromkeys(names) if name not in known]


def fill(text: str, values: Mapping[str, str]) -> str:
    """Returns a valid template with its fields filled in; a value is not a template again.

    Raises:
        KeyError: a field has neither a value nor a default.
    """
    return "".join(part if isinstance(part, str) else _value(part, values) for part in _parts(text))


def _value(field: Field, values: Mapping[str, str]) -> str:
    return values[field.name] if field.default is None or field.name in values else field.default
