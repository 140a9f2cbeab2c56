"""Collects the text files of a campaign: manifest, pipeline file, tables and prompt files.

Whoever reads one asks ``place_of`` where it is and hands its content to ``note``. So ``reading`` knows what a campaign
was made of, and can have copies read in place of files that changed or are gone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Sources:
    """The files that are read during one ``reading``.

    Attributes:
        copies: files to read in place of others, by absolute path.
        content: bytes of each file that was read, by absolute path.
    """

    copies: Mapping[Path, Path]
    content: dict[Path, bytes] = field(default_factory=dict)


_AT_HAND: ContextVar[Sources | None] = ContextVar("sources", default=None)


@contextmanager
def reading(copies: Mapping[Path, Path] | None = None) -> Iterator[Sources]:
    """Yields what is read during the block.

    Args:
        copies: see ``Sources``.
    """
    sources = Sources(copies or {})
    token = _AT_HAND.set(sources)
    try:
        yield sources
    finally:
        _AT_HAND.reset(token)


def place_of(path: Path) -> Path:
    """Returns where a text file is read: its copy if there is one, else the path itself."""
    sources = _AT_HAND.get()
    return sources.copies.get(_absolute(path), path) if sources else path


def is_file(path: Path) -> bool:
    """Returns whether a text file, or its copy, is a regular file."""
    return os.path.isfile(place_of(path))


def note(path: Path, content: bytes) -> None:
    """Records the content of a text file that was read."""
    if sources := _AT_HAND.get():
        sources.content[_absolute(path)] = content


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))
