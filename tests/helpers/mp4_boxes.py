"""Reads the boxes of MP4 files (ISO/IEC 14496-12), as far as tests look at them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

_SAMPLE_ENTRY_BYTES = 78
"""Fields of a visual sample entry, before its own boxes."""
_STSD_BYTES = 8
"""Version, flags and number of entries, before the entries."""


class Colours(NamedTuple):
    """A ``colr`` box of type nclx. The numbers are those of ITU-T H.273; 1 is BT.709."""

    primaries: int
    transfer: int
    matrix: int
    full_range: bool


def boxes(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields type and content of each box, in the order of the file."""
    while data:
        size, kind, start = int.from_bytes(data[:4]), data[4:8].decode("latin-1"), 8
        if size == 1:
            size, start = int.from_bytes(data[8:16]), 16
        size = size or len(data)
        assert start <= size <= len(data), f"{kind}: a box of {size} bytes in {len(data)}"
        yield kind, data[start:size]
        data = data[size:]


def inside(data: bytes, *path: str) -> bytes:
    """Returns the content of the first box at a path, such as ``moov``, ``trak``."""
    for kind in path:
        data = next(content for name, content in boxes(data) if name == kind)
    return data


def sample_entry(data: bytes) -> tuple[str, dict[str, bytes]]:
    """Returns the type of the video's sample entry, such as ``avc1``, and the boxes in it."""
    entries = inside(data, "moov", "trak", "mdia", "minf", "stbl", "stsd")[_STSD_BYTES:]
    [(kind, entry)] = boxes(entries)
    return kind, dict(boxes(entry[_SAMPLE_ENTRY_BYTES:]))


def colours(box: bytes) -> Colours:
    """Returns the content of a ``colr`` box."""
    assert box[:4] == b"nclx"
    primaries, transfer, matrix = (int.from_bytes(box[start : start + 2]) for start in (4, 6, 8))
    return Colours(primaries, transfer, matrix, full_range=bool(box[10] & 0x80))


def without_mark(data: bytes) -> bytes:
    """Returns an MP4 file without the XMP box at its end."""
    *others, (kind, _) = boxes(data)
    assert kind == "uuid"
    return data[: sum(8 + len(content) for _, content in others)]
