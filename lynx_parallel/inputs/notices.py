"""Warnings about input that is allowed, but probably not meant. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MAX_EXAMPLES = 3
"""Examples that one line shows. Further ones are counted."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One warning about one place of the input.

    Attributes:
        kind: a stable name for programs, such as ``prompt-too-long``.
        message: what is wrong and what to do, the same for all notices of this kind.
        example: the place: a shot, a prompt, a file, ``file:line``, and what was found there.
    """

    kind: str
    message: str
    example: str


def notice_lines(notices: Iterable[Notice]) -> list[str]:
    """Returns one line per kind: message, count and up to three examples."""
    lines = []
    for message, examples in _by_kind(notices).values():
        shown = "; ".join(examples[:MAX_EXAMPLES])
        rest = len(examples) - MAX_EXAMPLES
        lines.append(f"warning: {message} ({len(examples)}): {shown}{f'; and {rest} more' if rest > 0 else ''}")
    return lines


def notices_as_json(notices: Iterable[Notice]) -> list[dict[str, Any]]:
    """Returns one object per kind, with all its examples."""
    return [
        {"kind": kind, "message": message, "count": len(examples), "examples": examples}
        for kind, (message, examples) in _by_kind(notices).items()
    ]


def _by_kind(notices: Iterable[Notice]) -> dict[str, tuple[str, list[str]]]:
    found: dict[str, tuple[str, list[str]]] = {}
    for notice in dict.fromkeys(notices):
        found.setdefault(notice.kind, (notice.message, []))[1].append(notice.example)
    return found
