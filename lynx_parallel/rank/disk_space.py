"""Waits for room on a full disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from lynx_parallel.errors import RenderError
from lynx_parallel.failures import disk_is_full

ROOM_WITHIN_S = 600.0
"""Seconds that a finished shot waits for room on a full disk."""


def when_room(write: Callable[[], None], path: Path, waits: Callable[[str], None]) -> None:
    """Writes a file, and tries again while the disk is full, because making the content took minutes.

    Args:
        write: writes the whole of ``path``.
        waits: called about once a second with what is waited for, and with ``""`` at the end.

    Raises:
        RenderError: ``path`` cannot be written; of kind ``disk`` if the disk is still full after ``ROOM_WITHIN_S``.
    """
    deadline = time.monotonic() + ROOM_WITHIN_S
    try:
        while True:
            try:
                return write()
            except (OSError, SafetensorError, RenderError) as error:
                if not disk_is_full(error):
                    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
                    raise error if isinstance(error, RenderError) else RenderError(f"{path}: {reason}") from None
            if time.monotonic() > deadline:
                raise RenderError(f"{path}: no space left on the disk", "disk")
            waits(f"room on the disk of {path.parent}")
            time.sleep(1)
    finally:
        waits("")
