"""Names files that the user may have meant, where a file is missing."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from lynx_parallel.inputs.problems import shown_value

_MOST_FILES = 2000
_SIMILAR = 0.8
"""Least similarity of two names, from 0 to 1. The same suffix makes all pictures of a folder somewhat similar."""


def near_file(path: Path | str) -> str:
    """Returns ``; did you mean 'ada.JPG'?`` if the folder of a missing file holds a similar name, else nothing.

    Case does not count. If folders of the path are missing, too, the first of them is looked for.
    """
    missing = Path(os.path.abspath(path))
    while not os.path.lexists(missing.parent):
        missing = missing.parent
    try:
        names = sorted(os.listdir(missing.parent))[:_MOST_FILES]
    except OSError:
        return ""
    by_fold = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(missing.name[:200].casefold(), by_fold, n=1, cutoff=_SIMILAR)
    return f"; did you mean {shown_value(by_fold[near[0]])}?" if near and not os.path.lexists(missing) else ""


def file_mistake(path: Path) -> str:
    """Returns why a path names no regular file: ``not a regular file``, or ``missing file`` and a similar name."""
    return "not a regular file" if os.path.exists(path) else f"missing file{near_file(path)}"
