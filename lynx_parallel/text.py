"""Text for the user: counts, durations, sizes, paths, and errors on one line. Imports neither torch nor Ray."""

from __future__ import annotations

import re
from pathlib import Path

_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_LONGEST = 300


def counted(number: int, noun: str) -> str:
    """Returns ``1 shot`` or ``2 shots``; for nouns whose plural ends in ``s``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shown_duration(seconds: float) -> str:
    """Returns a duration as ``--stop-after`` takes it: ``3h50m``, ``45m`` or ``90s``."""
    hours, rest = divmod(round(seconds), 3600)
    parts = [(hours, "h"), (rest // 60, "m"), (rest % 60, "s")]
    return "".join(f"{number}{unit}" for number, unit in parts if number) or "0s"


def rough_duration(seconds: float) -> str:
    """Returns a duration for people, rounded: ``40 s``, ``12 min`` or ``3 h 50 min``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def shown_size(count: int) -> str:
    """Returns a number of bytes for the user: ``65.6 GB``, ``12 kB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def shown_path(path: Path | str) -> str:
    """Returns a path for the user: relative if it lies in the working folder, control characters escaped."""
    try:
        text = str(Path(path).absolute().relative_to(Path.cwd()))
    except (ValueError, OSError):
        text = str(path)
    return escaped(text)


def escaped(text: str) -> str:
    """Returns the text with line breaks and control characters as escapes such as ``\\n``."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(message: object) -> str:
    """Returns a message of a library, or a key of a file, on one line.

    Runs of white space become one space, other control characters become ``?``. The result has at most 301 characters.
    An OSError gives its reason without the path, because the caller's own line names the path.
    """
    if isinstance(message, OSError) and message.strerror:
        return message.strerror
    line = " ".join(str(message).split()) or type(message).__name__
    line = "".join(character if character.isprintable() else "?" for character in line[:_LONGEST])
    return line if len(line) < _LONGEST else f"{line}…"


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message without colours, or the error's type if the message is empty."""
    text = _COLOURS.sub("", str(error))
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)


def in_words(error: Exception) -> str:
    """Returns an error for the user: an OSError as ``file: reason``, any other as its message."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def is_text(text: str) -> bool:
    """Returns whether a text from the command line or a file name is UTF-8 without NUL.

    Python shows other bytes as half surrogate pairs.
    """
    return not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text)
