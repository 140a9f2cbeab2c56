"""Reads the user's files as bytes or text. An error is one line with the reason."""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path

from yaml.reader import Reader

from lynx_parallel.inputs.sources import note, place_of

MAX_BYTES = 16 * 2**20


class Unreadable(Exception):
    """A file cannot be used. ``line`` is the line of the mistake, or 0 for the whole file."""

    def __init__(self, reason: str, line: int = 0):
        super().__init__(reason)
        self.reason = reason
        self.line = line


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """Returns the text of a regular file in UTF-8, or in UTF-16 with a byte order mark; without that mark.

    Raises:
        Unreadable: missing, not a regular file, too large, in another encoding, or holding control characters.
    """
    content = read_bytes(path, max_bytes)
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].decode(encoding, "ignore").count("\n") + 1
        raise Unreadable("not UTF-8 text" if encoding == "utf-8-sig" else "not UTF-16 text", line) from None
    odd = Reader.NON_PRINTABLE.search(text)
    if odd:
        raise Unreadable(f"holds the control character {odd[0]!r}", text.count("\n", 0, odd.start()) + 1)
    return text


def read_bytes(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Returns the content of a regular file.

    Raises:
        Unreadable: missing, not a regular file, or too large.
    """
    place = place_of(path)
    try:
        mode = os.stat(place).st_mode
        if not stat.S_ISREG(mode):
            raise Unreadable("is a folder, not a file" if stat.S_ISDIR(mode) else "not a regular file")
        with open(place, "rb") as file:
            content = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise Unreadable("missing file") from None
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise Unreadable("not a possible path") from None
    if len(content) > max_bytes:
        raise Unreadable(f"larger than {max_bytes / 2**20:g} MiB")
    note(path, content)
    return content
