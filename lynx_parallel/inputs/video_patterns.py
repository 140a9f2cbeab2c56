"""Finds videos, of any system, and the picture of the person in each, by the names of the files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.picture_patterns import is_picture

_FIELD = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}|(\*\*/|\*|\?)")
_WILD = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}


@dataclass(frozen=True)
class FoundVideo:
    """A video and the picture of its person.

    Attributes:
        fields: what the fields of the pattern stand for in the video's name.
        picture: None if no picture fits.
    """

    path: Path
    fields: Mapping[str, str]
    picture: Path | None


def find_videos(videos: str, faces: str) -> list[FoundVideo]:
    """Returns the videos that fit a pattern, sorted, each with its picture.

    ``{name}`` stands for any text without a slash. The picture's pattern may use the same fields: its text is then that
    of the video. ``*`` and ``?`` stand for other text.

    Args:
        videos: such as ``clips/{subject}_{prompt}.mp4``.
        faces: such as ``faces/{subject}.*``, or one picture for all.

    Raises:
        InputErrors: no video fits, or a pattern cannot be used.
    """
    expression, folder = _expression(videos)
    named = set(re.compile(expression).groupindex)
    if unknown := [match[1] for match in _FIELD.finditer(faces) if match[1] and match[1] not in named]:
        known = ", ".join(sorted(named)) or "none"
        raise InputErrors([f"--faces {faces}: {{{unknown[0]}}}: no such field in --videos (fields: {known})"])
    found = []
    for path in _files(folder):
        if match := re.fullmatch(expression, path):
            fields = match.groupdict()
            found.append(FoundVideo(Path(path), fields, _picture(faces, fields)))
    if not found:
        raise InputErrors([f"--videos {videos}: no file fits; write fields as {{subject}} and quote the pattern"])
    return sorted(found, key=lambda one: one.path)


def _expression(pattern: str) -> tuple[str, str]:
    """Returns a regular expression of whole absolute paths, and the folder below which they lie."""
    pattern = os.path.abspath(os.path.expanduser(pattern))
    first = _FIELD.search(pattern)
    folder = os.path.dirname(pattern[: first.start()] if first else pattern)
    seen: set[str] = set()

    def replaced(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return _WILD[match[2]]
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>[^/]+?)"

    parts, end = [], 0
    for match in _FIELD.finditer(pattern):
        parts += [re.escape(pattern[end : match.start()]), replaced(match)]
        end = match.end()
    return "".join([*parts, re.escape(pattern[end:])]), folder


def _files(folder: str) -> list[str]:
    return [os.path.join(top, name) for top, _, names in os.walk(folder) for name in names]


def _picture(pattern: str, fields: Mapping[str, str]) -> Path | None:
    """Returns the first picture that fits, by name."""
    filled = _FIELD.sub(lambda match: fields[match[1]] if match[1] else match[0], pattern)
    expression, folder = _expression(filled)
    fitting = (Path(path) for path in sorted(_files(folder)) if re.fullmatch(expression, path))
    return next((path for path in fitting if is_picture(path)), None)
