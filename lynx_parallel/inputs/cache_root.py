"""The user's cache folder. Imports neither torch nor Ray."""

from __future__ import annotations

import os
from pathlib import Path

from lynx_parallel.errors import ClusterError


def cache_root() -> Path:
    """Returns the cache folder: ``$LYNX_CACHE``, ``$XDG_CACHE_HOME/lynx-parallel`` or ``~/.cache/lynx-parallel``.

    It may not exist yet. An empty variable counts as unset, as the XDG specification asks; so does a
    relative ``$XDG_CACHE_HOME``.

    Raises:
        ClusterError: it would lie in the user's home folder, and there is none.
    """
    try:
        if own := os.environ.get("LYNX_CACHE"):
            return Path(own).expanduser().absolute()
        xdg = os.environ.get("XDG_CACHE_HOME", "")
        base = Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache"
    except RuntimeError:
        raise ClusterError(
            f"no home folder: HOME is not set, and user {os.getuid()} has no entry in the password database. Set "
            "LYNX_CACHE to a folder for the cache, or set HOME."
        ) from None
    return base / "lynx-parallel"
