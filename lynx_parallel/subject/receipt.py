"""The receipt of a removal: what was removed, and what may remain. It holds no face data and no prompts.

Imports neither torch nor Ray.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lynx_parallel.errors import InputErrors
from lynx_parallel.output.atomic import atomic_write
from lynx_parallel.output.checksums import sha256_file
from lynx_parallel.output.journal import now
from lynx_parallel.subject.forget import Search

RECEIPT_VERSION = 1


def check_receipt(path: Path) -> None:
    """Refuses a receipt that exists or whose folder does not, before anything is removed.

    Raises:
        InputErrors: one line.
    """
    if os.path.lexists(path):
        raise InputErrors([f"--receipt {path}: exists already; name another file"])
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputErrors([f"--receipt {path}: its folder cannot be written"])


def describe(search: Search) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns size and sha256 of each file to be removed, also of those in folders, by subject and path."""
    return {
        name: {str(path): _facts(path) for path in _files(found.removable)} for name, found in search.subjects.items()
    }


def write_receipt(
    path: Path, search: Search, before: Mapping[str, Mapping[str, Mapping[str, Any]]], *, finished: bool
) -> None:
    """Writes the receipt of a removal: once before it, and again at its end.

    Args:
        before: by ``describe``, before the removal.
        finished: False before the removal. If it is killed, the receipt lists what was to be removed, under ``left``.

    Raises:
        OSError: it cannot be written.
    """
    subjects = [
        {
            "subject": name,
            "outputs": sorted(map(str, search.wanted[name])),
            "removed": [{"path": one, **facts} for one, facts in before[name].items() if not os.path.lexists(one)],
            "left": [{"path": one, **facts} for one, facts in before[name].items() if os.path.lexists(one)],
            "takes": found.takes,
            "hosts": found.hosts,
        }
        for name, found in search.subjects.items()
    ]
    text = json.dumps(
        {"version": RECEIPT_VERSION, "finished": now() if finished else None, "subjects": subjects}, indent=2
    )
    with atomic_write(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def _files(paths: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            found += sorted(Path(folder, name) for folder, _, names in os.walk(path) for name in names)
        else:
            found.append(path)
    return found


def _facts(path: Path) -> dict[str, Any]:
    try:
        return {"size": path.stat().st_size, "sha256": sha256_file(path)}
    except OSError:  # a broken link, or a file that cannot be read
        return {"size": None, "sha256": None}
