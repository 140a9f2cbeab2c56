"""A person and its reference latents as the arrays of a cache entry, with a schema version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lynx_parallel.subject.person import Person

SCHEMA = 1
"""Version of an entry's arrays. Raise it when an array gets another name or meaning: older entries are then misses."""
_SCHEMA, _LATENTS = "schema", "reference_latents"
_FIELDS = frozenset(field.name for field in fields(Person)) - {"warning"}


def to_arrays(person: Person, reference_latents: NDArray[Any] | None) -> dict[str, NDArray[Any]]:
    """Returns the arrays of an entry. Arguments that are None have no array."""
    arrays = {name: getattr(person, name) for name in _FIELDS} | {_LATENTS: reference_latents}
    return {_SCHEMA: np.array(SCHEMA), **{name: array for name, array in arrays.items() if array is not None}}


def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> tuple[Person, NDArray[Any] | None] | None:
    """Returns the person and its reference latents, or None for an entry of another schema.

    Entries of version 0.1.0 have no ``schema``. They are of schema 1.
    """
    fields = dict(arrays)
    if int(fields.pop(_SCHEMA, 1)) != SCHEMA:
        return None
    latents = fields.pop(_LATENTS, None)
    if "embedding" not in fields or not fields.keys() <= _FIELDS:
        return None
    return Person(**fields), latents  # type: ignore[arg-type]
