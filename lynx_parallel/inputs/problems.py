"""Collects mistakes in the user's files and options, so that all of them are reported at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.notices import Notice
from lynx_parallel.text import escaped, shown_path

KeyPath = tuple[str | int, ...]

MAX_LINES = 100  # further mistakes are only counted
_SHOWN_CHARS = 80
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.*-]{0,99}")


def shown_value(value: Any) -> str:
    """Returns a value for an error line: text in quotes, at most about 80 characters; containers by kind."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, str):
        text = repr(value[: _SHOWN_CHARS + 1])
        return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…" + text[0]
    if isinstance(value, int) and value.bit_length() > 1024:
        return "a number of more than 300 digits"
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"


def shown_key(path: KeyPath) -> str:
    """Returns ``("shots", 0, "seeds", 2)`` as ``shots[0].seeds[2]``."""
    out = ""
    for part in path:
        if isinstance(part, int):
            out += f"[{part}]"
        else:
            name = part if _PLAIN_KEY.fullmatch(part) else shown_value(part)
            out += f".{name}" if out else name
    return out


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """Returns the known name that is most like another, or nothing. Case does not count."""
    by_fold = {one.casefold(): one for one in list(known)[:2000]}
    return [by_fold[near] for near in difflib.get_close_matches(name[:200].casefold(), by_fold, n=1)]


def listing(names: Iterable[str], what: str) -> str:
    """Returns ``allowed: fps, width``, at most 30 names."""
    known = list(names)
    more = f", … {len(known) - 30} more" if len(known) > 30 else ""
    return f"{what}: {', '.join(known[:30]) or 'none'}{more}"


def nearest(name: str, known: Iterable[str], what: str = "allowed") -> str:
    """Returns ``did you mean 'width'? (allowed: fps, …, width)``, or ``allowed: fps, …`` if no name is near."""
    names = list(known)
    near, listed = near_names(name, names), listing(names, what)
    return f"did you mean {near[0]!r}? ({listed})" if near else listed


def one_of(names: Sequence[str]) -> str:
    """Returns ``'a', 'b' or 'c'``."""
    quoted = [repr(name) for name in names]
    return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + " or " + quoted[-1]


class Problems:
    """Collects mistakes. ``raise_if_any`` raises them as one InputErrors, sorted by file and line.

    Attributes:
        notices: warnings, which do not raise.
    """

    def __init__(self) -> None:
        self.notices: list[Notice] = []
        self._found: dict[tuple[str, int, str], None] = {}  # a set that keeps order

    def __len__(self) -> int:
        return len(self._found)

    def add(self, file: Path | str, line: int, message: str) -> None:
        """Records ``file:line: message``; the same line counts once. Line 0 stands for the whole file."""
        self._found.setdefault((shown_path(file), line, escaped(message)))

    def option(self, message: str) -> None:
        """Records a mistake in a command-line option; the message starts with the option."""
        self._found.setdefault(("", 0, escaped(message)))

    def warn(self, kind: str, message: str, example: str) -> None:
        """Records a warning; the arguments are ``Notice``'s."""
        self.notices.append(Notice(kind, escaped(message), escaped(example)))

    def raise_if_any(self) -> None:
        """Raises InputErrors when something was recorded."""
        if not self._found:
            return
        found = sorted(self._found, key=lambda item: item[:2])
        places = [f"{file}:{line}: " if line else f"{file}: " if file else "" for file, line, _ in found]
        lines = [f"{place}{message}" for place, (_, _, message) in zip(places, found, strict=True)]
        if len(lines) > MAX_LINES:
            lines[MAX_LINES:] = [f"{places[MAX_LINES]}… and {len(lines) - MAX_LINES} more mistakes from here on"]
        raise InputErrors(lines)
