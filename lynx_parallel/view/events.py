"""``--events``: what a run does, as one JSON object per line. ``docs/events.md`` describes them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any, TextIO

EVENTS_SCHEMA = 1
"""Version of the events, the key ``schema`` of each of them."""


class Events:
    """Writes events to a stream, one line each, and flushes it.

    If an event cannot be written, because the reader has ended or a disk is full, it is lost, and the run continues.

    Args:
        stream: text stream to write to.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __call__(self, event: Mapping[str, Any]) -> None:
        line = json.dumps({"schema": EVENTS_SCHEMA, **event}, ensure_ascii=False)
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(line.encode(errors="backslashreplace").decode() + "\n")
            self._stream.flush()


def open_events(path: str) -> TextIO:
    """Opens a file, a named pipe or ``/dev/fd/N`` for events. A file that exists is continued.

    Raises:
        OSError: it cannot be opened.
    """
    return open(os.fspath(path), "a", encoding="utf-8", errors="backslashreplace")
