"""Folders of the demo's generated files, and whether they are complete. Imports neither torch nor Ray."""

from __future__ import annotations

import json
from pathlib import Path

from lynx_parallel.inputs.cache_root import cache_root

# Any change of a byte in a built folder needs a new name: the old one stays in users' caches.
CHECKPOINT_NAME, FACEPACK_NAME = "demo-tiny-v1", "demo-faces-v1"
RECOGNISER = "arcface_ir_se50_demo.safetensors"
INVENTORY = "demo.json"
"""File of ``{relative path: size in bytes}`` in a built folder; written last."""


def demo_root() -> Path:
    """Returns the folder of ``demo:tiny``, which holds ``wan/``, ``full/`` and ``lite/``. It may not be built yet."""
    return cache_root() / CHECKPOINT_NAME


def facepack_root() -> Path:
    """Returns the folder of the demo's face models. It may not be built yet."""
    return cache_root() / FACEPACK_NAME


def is_built(root: Path | None = None) -> bool:
    """Returns whether a folder holds every file of its inventory, at its size.

    Args:
        root: ``demo_root()`` by default.
    """
    root = root or demo_root()
    try:
        inventory = json.loads((root / INVENTORY).read_text())
        return all((root / path).stat().st_size == size for path, size in inventory.items())
    except (OSError, ValueError, AttributeError):
        return False
