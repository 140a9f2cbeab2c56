"""Finds the pictures of ``subjects: {from: faces/*.jpg}``, and reports the files that it leaves out."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from lynx_parallel.inputs.problems import Problems
from lynx_parallel.inputs.weight_names import resolve_file
from lynx_parallel.text import shown_path

SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx", ".pbm",
     ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp")
)  # fmt: skip
_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM....\0{4}|II\*\0|MM\0\*|RIFF....WEBP|....ftyp(?:avi|hei|hev|mif)", re.DOTALL
)
PATTERN = re.compile(r"[*?[]")


def find_pictures(folder: Path, pattern: str, problems: Problems) -> tuple[list[Path], list[str]]:
    """Returns the pictures that fit a pattern, sorted, and shown names of what fits and is left out.

    ``*``, ``?`` and ``[…]`` match inside one name, ``**`` also folders inside folders. A folder stands for the pictures
    in it. Picture suffixes match in upper and lower case. A part of the pattern that exists as it is written is taken
    literally, so that folders may be called ``[ACME]``. Hidden files need a pattern that starts with a dot. A warning
    names pictures that differ from the pattern in their suffix only.

    Args:
        folder: relative patterns start here.

    Raises:
        OSError: a folder cannot be read.
    """
    pattern = os.path.expanduser(pattern)
    *folders, last = [part for part in pattern.split("/") if part not in ("", ".")] or [""]
    parts: list[str] = []
    for part in (*folders, last):
        parts += ["**", "*" + part[2:]] if part.startswith("**") and part != "**" else [part]
    if parts[-1] == "**":
        parts.append("*")
    start = "/" if pattern.startswith("/") else os.path.abspath(folder)
    paths = sorted(_matches(start, parts))
    if any(os.path.basename(path) == parts[-1] and os.path.isdir(path) for path in paths):
        parts.append("*")
        paths = sorted(_matches(start, parts))
    found = dict.fromkeys(resolve_file(folder, path) for path in paths)
    pictures = [path for path in found if is_picture(path)]
    others = [_shown_other(path) for path in found if not is_picture(path) and not ("**" in parts and path.is_dir())]
    _warn_of_other_suffixes(folder, start, parts, pictures, problems)
    return pictures, others


def _matches(folder: str, parts: list[str]) -> Iterator[str]:
    """Paths below ``folder`` that fit the parts of a pattern."""
    part, rest = parts[0], parts[1:]
    literal = os.path.join(folder, part)
    if part == "**":
        for inner in _folders(folder):
            yield from _matches(inner, rest)
    elif not PATTERN.search(part) or ("[" in part and os.path.lexists(literal)):
        if not rest and os.path.lexists(literal):
            yield literal
        elif rest and os.path.isdir(literal):
            yield from _matches(literal, rest)
    elif os.path.isdir(folder):
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if _fits(entry.name, part) and (not rest or entry.is_dir())]
        for name in names:
            path = os.path.join(folder, name)
            if rest:
                yield from _matches(path, rest)
            else:
                yield path


def _folders(top: str) -> Iterator[str]:
    """Yields ``top`` and each folder inside it once, also through links. Hidden folders are skipped."""
    seen: set[str] = set()
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen or not os.path.isdir(folder):
            continue
        seen.add(real)
        yield folder
        with os.scandir(folder) as entries:
            waiting += [entry.path for entry in entries if not entry.name.startswith(".") and entry.is_dir()]


def _fits(name: str, pattern: str) -> bool:
    if name.startswith(".") and not pattern.startswith("."):
        return False
    name, pattern = unicodedata.normalize("NFC", name), unicodedata.normalize("NFC", pattern)
    if fnmatchcase(name, pattern):
        return True
    stem, suffix = os.path.splitext(name)
    head, dot, tail = pattern.rpartition(".")
    return suffix.lower() in SUFFIXES and fnmatchcase(stem + suffix.lower(), head + dot + tail.lower())


def is_picture(path: Path) -> bool:
    """Returns whether a file is a picture by its suffix, or by its first bytes if the suffix is unknown."""
    if path.name.startswith("._") or not os.path.isfile(path):  # ._x.jpg holds macOS' notes about x.jpg
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with open(path, "rb") as file:
            return _MAGIC.match(file.read(16)) is not None
    except OSError:
        return False


def _shown_other(path: Path) -> str:
    shown = shown_path(path)
    if os.path.isdir(path):
        return f"{shown}/ (a folder; ** searches inside)"
    return shown if os.path.exists(path) else f"{shown} (a broken link)"


def _warn_of_other_suffixes(
    folder: Path, start: str, parts: list[str], pictures: list[Path], problems: Problems
) -> None:
    """Warns of pictures such as ``ada.jpeg`` beside ``*.jpg``, unless their subject has a picture anyway."""
    head, dot, tail = parts[-1].rpartition(".")
    if not dot or f".{tail.lower()}" not in SUFFIXES or not PATTERN.search(head):
        return
    taken = {path.stem.casefold() for path in pictures}
    beside = sorted(_matches(start, [*parts[:-1], f"{head}.*"]))
    for path in dict.fromkeys(resolve_file(folder, path) for path in beside):
        if path.suffix.lower() in SUFFIXES and path.stem.casefold() not in taken and is_picture(path):
            message = "pictures with another suffix than the pattern's were left out; leave the suffix out to take all"
            problems.warn("picture-left-out", message, shown_path(path))
