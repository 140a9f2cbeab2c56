"""The log of a rank: everything that its process prints during a shot."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lynx_parallel.failures import disk_is_full


def write_log(line: str) -> None:
    """Prints a line. On a full disk the line is lost, and the shot continues."""
    with suppress(OSError):
        print(line, flush=True)


@contextmanager
def logged_to(log: Path) -> Iterator[None]:
    """Sends everything that this process and its C libraries print to a file; on a full disk, to ``/dev/null``."""
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
