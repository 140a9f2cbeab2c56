"""What a rank writes: its log, and files for which there may be no room for a while."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lynx_parallel.failures import disk_is_full


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
