"""Files and where they live. Imports neither torch nor Ray."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """The user's cache folder: ``$LYNX_CACHE``, else ``$XDG_CACHE_HOME/lynx-parallel``, else ``~/.cache/…``.

    It may not exist yet. An empty variable counts as unset, as the XDG specification asks; so does a
    relative ``$XDG_CACHE_HOME``.
    """
    if own := os.environ.get("LYNX_CACHE"):
        return Path(own).expanduser().absolute()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache"
    return base / "lynx-parallel"
