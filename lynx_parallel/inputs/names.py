"""Checks output names and the ``name:`` pattern."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Collection

from lynx_parallel.inputs.problems import nearest
from lynx_parallel.output.sidecar import SUFFIXES

FIELDS = ("subject", "prompt", "variant", "take", "seed")
NUMBERS = frozenset({"take", "seed"})
"""Fields that are whole numbers, which take a format."""
DELIVERED_NAME = "{subject}_{prompt}_t{take:02}"
"""Default pattern of delivered files. Shots of a variant get ``_{variant}`` at the end."""
_INT_SPEC = re.compile(r"0?[0-9]{0,2}d?", re.ASCII)
_MAX_COMPONENT = 200  # bytes; file systems take 255, and the longest suffix with .part has 25
_MAX_TOTAL = 1000


def pattern_mistake(pattern: str, fields: Collection[str] = FIELDS, numbers: Collection[str] = NUMBERS) -> str | None:
    """Returns what is wrong with a ``name:`` pattern, or None.

    Args:
        fields: that it may use.
        numbers: those of them that are whole numbers.
    """
    try:
        parts = list(string.Formatter().parse(pattern))
    except ValueError as error:
        return f"{error}: write {{{{ and }}}} for braces"
    for _, field, spec, conversion in parts:
        if field is None:
            continue
        if field not in fields:
            return f"{{{field[:80]}}}: unknown field; {nearest(field, fields)}"
        number = field in numbers
        if conversion or (spec and not (number and _INT_SPEC.fullmatch(spec))):
            return f"{{{field}}}: takes no format" if not number else f"{{{field}}}: a format is like {{take:02}}"
    return None


def name_mistake(name: str) -> str | None:
    """Returns what is wrong with an output name (POSIX, without suffix), or None.

    A right name stays inside the output folder, never meets the renderer's own files there (``.lynx/``,
    temporaries ``.part``), and leaves room for suffixes.
    """
    if "\\" in name:
        return "holds a backslash"
    if not name.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
        return "holds a control character"
    if name.startswith("/"):
        return "is absolute: names are relative to output"
    if len(name.encode()) > _MAX_TOTAL:
        return f"is longer than {_MAX_TOTAL} bytes"
    for part in name.split("/"):
        if not part.strip():
            return "has an empty part"
        if part.startswith("."):
            return "has a part that starts with '.'"
        if len(part.encode()) > _MAX_COMPONENT:
            return f"has a part longer than {_MAX_COMPONENT} bytes"
        if part.casefold().endswith(".part"):
            return "has a part that ends in '.part', which marks unfinished files"
    return None


def fold(name: str) -> str:
    """Returns the same text for names that some file system treats as equal."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def folder_clash(folded: str, names: dict[str, int]) -> int | None:
    """Returns the index of the shot that has a file where this name needs a folder, or None."""
    end = folded.find("/")
    while end >= 0:
        folder = folded[:end]
        for suffix in SUFFIXES.values():
            if folder.endswith(suffix) and folder.removesuffix(suffix) in names:
                return names[folder.removesuffix(suffix)]
        end = folded.find("/", end + 1)
    return None
