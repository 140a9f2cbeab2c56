"""Checks a converted copy of the transformer before it is used."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path

from lynx_parallel.inputs.weight_files import CONVERTED, WeightFiles
from lynx_parallel.output.atomic import set_aside
from lynx_parallel.output.checksums import sha256_file
from lynx_parallel.text import in_words


def checked(weights: WeightFiles) -> tuple[WeightFiles, str]:
    """Reads the converted copies whole, before they are used: a damaged copy may keep its size and mtime.

    A damaged copy is moved aside, to ``damaged/`` beside it.

    Returns:
        The weights, without damaged copies. A line about the damaged ones, or an empty one.
    """
    lines = []
    for field in ("converted", "converted_2"):
        copy = getattr(weights, field)
        if copy is not None and copy.is_dir() and (reason := _damage(copy.parent)):
            weights = replace(weights, **{field: None})  # type: ignore[arg-type]
            lines.append(reason)
    return weights, "; ".join(lines)


def _damage(root: Path) -> str:
    """Returns what is wrong with a copy, and moves it aside; an empty text for a good copy."""
    reason = ""
    try:
        files = json.loads((root / CONVERTED).read_text(encoding="utf-8"))["files"]
        if wrong := [name for name, sha256 in files.items() if sha256_file(root / name) != sha256]:
            reason = f"{root / wrong[0]}: damaged"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = in_words(error) if isinstance(error, OSError) else f"{root / CONVERTED}: damaged"
    if not reason:
        return ""
    with contextlib.suppress(OSError):  # another rank may have done it
        reason += f"; the copy was moved to {set_aside(root, root.parent / 'damaged')}"
    rest = "The published files are read instead. To make a new copy, run lynx-render fetch PIPELINE --convert"
    return f"{reason}. {rest}"
