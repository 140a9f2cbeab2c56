"""What a rank writes: its log, and files for which there may be no room for a while."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from lynx_parallel.errors import RenderError
from lynx_parallel.failures import disk_is_full

ROOM_WITHIN_S = 600.0
"""So long a finished shot waits for room on a full disk."""


def when_room(write: Callable[[], None], path: Path, waits: Callable[[str], None]) -> None:
    """Writes, again and again while the disk is full: what is written took longer to make than making room does.

    Args:
        write: writes the whole of ``path``.
        waits: is told what is waited for, about once a second, and ``""`` at the end.

    Raises:
        RenderError: ``path`` cannot be written; of kind ``disk`` when the disk is still full after a while.
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


def write_log(line: str) -> None:
    """Prints a line; a full disk costs the line, not the shot."""
    with suppress(OSError):
        print(line, flush=True)


@contextmanager
def logged_to(log: Path) -> Iterator[None]:
    """All this process prints, C libraries included, goes to a file meanwhile; nowhere, where the disk is full."""
    saved = os.dup(1), os.dup(2)
    with _opened(log) as file:
        _flush()
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        _flush()
        for descriptor, copy in enumerate(saved, start=1):
            os.dup2(copy, descriptor)
            os.close(copy)


def _opened(log: Path) -> BinaryIO:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return log.open("ab")
    except OSError as error:
        if not disk_is_full(error):
            raise
        return Path(os.devnull).open("ab")


def _flush() -> None:
    with suppress(OSError):
        sys.stdout.flush(), sys.stderr.flush()
