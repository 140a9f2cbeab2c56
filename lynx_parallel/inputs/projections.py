"""Finds the keys of the transformer's projections that make static keys and values. Imports no torch."""

from __future__ import annotations

from typing import Literal

ProjectionKind = Literal["text", "image", "identity", "reference"]

PROJECTIONS: dict[ProjectionKind, tuple[str, ...]] = {
    "text": ("attn2.to_k.", "attn2.to_v."),
    "image": ("attn2.add_k_proj.", "attn2.add_v_proj."),
    "identity": ("id_adapter.",),
    "reference": ("ref_adapter.",),
}
"""Modules of a block by what they project."""


def is_projection(key: str) -> bool:
    """Returns whether a state-dict key of ``LynxTransformer`` belongs to a projection of static keys or values."""
    parts = key.split(".", 2)
    modules = tuple(name for names in PROJECTIONS.values() for name in names)
    return len(parts) == 3 and parts[0] == "blocks" and parts[2].startswith(modules)
