"""Refuses pipes, sockets and devices, which can block for ever when they are opened."""

from __future__ import annotations

import os
from pathlib import Path

from lynx_parallel.errors import CheckpointError, LynxError


def refuse_special(path: Path | str, error: type[LynxError] = CheckpointError) -> None:
    """Checks that a path is no pipe, socket or device. Any other mistake is reported by opening the file.

    Args:
        error: type of the error to raise.

    Raises:
        LynxError: ``path`` is a pipe, a socket or a device.
    """
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise error(f"{path}: a pipe, socket or device, not a file")
