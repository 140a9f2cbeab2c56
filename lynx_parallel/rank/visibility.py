"""Finds files of the driver that a rank's machine does not see. Imports no torch."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

PROBE_WITHIN_S = 5.0
"""Seconds that a shared folder may take to show a new file on another machine."""


def missing_files(probe: Path, needed: Sequence[Path]) -> list[str]:
    """Returns, in words, what the driver sees and this machine does not see or cannot write.

    Args:
        probe: a file that the driver has just made in ``<output>/.lynx/``.
        needed: other files and folders.
    """
    deadline = time.monotonic() + PROBE_WITHIN_S
    while not probe.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    if not probe.exists():
        return [f"{probe.parent.parent}, the output folder"]
    if not os.access(probe.parent, os.W_OK):
        return [f"{probe.parent.parent}, the output folder, to write to it"]
    return [str(path) for path in needed if not path.exists()]
