"""Reads the configuration files of a base model. Imports neither torch nor Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.special import refuse_special
from lynx_parallel.inputs.weight_files import WeightFiles
from lynx_parallel.text import one_line

# Key → the largest value of sense: far above Wan's own, far below what would fill the memory.
_TRANSFORMER_SIZES = {
    "num_layers": 1000,
    "num_attention_heads": 1000,
    "attention_head_dim": 10_000,
    "rope_max_seq_len": 2**16,
}


def transformer_config(weights: WeightFiles) -> dict[str, Any]:
    """Returns diffusers' configuration of a transformer of the base, see ``WeightFiles.of``.

    Raises:
        CheckpointError: missing, not JSON, or without the sizes that a Wan transformer has.
    """
    path = weights.transformer_folder / "config.json"
    try:
        config = read_config(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}: is {weights.base} a Wan model in diffusers layout?") from None
    check_sizes(path, config, _TRANSFORMER_SIZES)
    match config.get("patch_size"):
        case [int(), int(), int()] as sizes if all(0 < size <= 100 for size in sizes):
            pass
        case other:
            raise CheckpointError(f"{path}: patch_size: {one_line(other)}: expected three whole numbers from 1 to 100")
    match config.get("eps", 1e-6):
        case int() | float() as eps if 0 <= eps < 1:
            pass
        case other:
            raise CheckpointError(f"{path}: eps: {one_line(other)}: expected a number from 0 to 1")
    return config


def read_config(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
        CheckpointError: missing, unreadable, or other JSON.
    """
    refuse_special(path)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {getattr(error, 'strerror', None) or one_line(error)}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(config).__name__}")
    return config


def check_sizes(path: Path, config: Mapping[str, Any], largest: Mapping[str, int], *, required: bool = True) -> None:
    """Checks that these keys of a configuration are whole numbers from 1 to the given maximum.

    Raises:
        CheckpointError: one is not; names it.
    """
    for key, top in largest.items():
        size = config.get(key)
        if size is None and not required:  # diffusers writes null for sizes that it derives from others
            continue
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= top:
            raise CheckpointError(f"{path}: {key}: {one_line(size)}: expected a whole number from 1 to {top}")
