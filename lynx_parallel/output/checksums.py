"""Digests, and safetensors files that hold their own checksum. Imports neither torch nor Ray, and numpy only on use."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHECKSUM_KEY = "sha256"
"""Key of the checksum in a file's metadata."""
DIGEST = "latents_digest"
"""Key of a shot's latents digest in a file's metadata."""
_CHECKSUM = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_MAX_HEADER_BYTES = 16 * 2**20


def pack(key: str, arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Returns a safetensors file. Its metadata ``sha256`` is of ``key`` and of the file with this field zeroed."""
    import numpy as np
    from safetensors.numpy import save

    plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    blank = save(plain, metadata={"sha256": "0" * 64})
    match = _CHECKSUM.search(blank)
    assert match  # the header, and its metadata first, is how such a file begins
    start, end = match.span(1)
    return blank[:start] + _checksum(key, blank, start, end).encode() + blank[end:]


def unpack(key: str, data: bytes) -> dict[str, NDArray[Any]]:
    """Returns the arrays that were packed under this key. Parses nothing before the checksum agrees.

    Raises:
        ValueError: ``data`` is anything else than ``pack`` made for ``key``.
    """
    match = _CHECKSUM.search(data)
    if not match or _checksum(key, data, *match.span(1)).encode() != match[1]:
        raise ValueError("damaged, or not ours")
    from safetensors.numpy import load

    return load(data)


def add_checksum(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """Returns a safetensors file with metadata and a checksum: ``sha256`` of the file with this field zeroed.

    Equal tensors and metadata give equal bytes. safetensors itself writes metadata in random order.

    Args:
        data: a safetensors file without metadata.
    """
    size, header = _header(data)
    text = json.dumps({"__metadata__": {CHECKSUM_KEY: "0" * 64, **metadata}, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    blank = len(text).to_bytes(8, "little") + text + data[8 + size :]
    match = _CHECKSUM.search(blank)
    assert match
    start, end = match.span(1)
    return blank[:start] + _checksum("", blank, start, end).encode() + blank[end:]


def metadata_of(data: bytes) -> dict[str, str] | None:
    """Returns a safetensors file's metadata, or None if ``data`` is damaged.

    A file that ``add_checksum`` made is checked whole. A file without a checksum is checked for its size alone.
    """
    try:
        size, header = _header(data)
    except ValueError:
        return None
    metadata = header.get("__metadata__", {})
    if CHECKSUM_KEY in metadata:
        match = _CHECKSUM.search(data[: 8 + size])
        if not match or _checksum("", data, *match.span(1)).encode() != match[1]:
            return None
    return metadata if _length(size, header) == len(data) else None


def read_metadata(path: Path | str) -> dict[str, str] | None:
    """Returns the metadata of a safetensors file, or None if there is no such file of the size that its header says.

    Reads the header alone, so the checksum is not compared.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return None
        with open(path, "rb") as file:
            start = file.read(8)
            start += file.read(min(int.from_bytes(start, "little"), _MAX_HEADER_BYTES))
        size, header = _header(start)
    except (OSError, ValueError):
        return None
    return header.get("__metadata__", {}) if _length(size, header) == status.st_size else None


def _header(data: bytes) -> tuple[int, dict[str, Any]]:
    """Returns length and content of a header. Raises ValueError if there is none."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 + size or size > _MAX_HEADER_BYTES:
        raise ValueError("no safetensors header")
    try:
        header = json.loads(data[8 : 8 + size])
    except RecursionError:
        raise ValueError("no safetensors header") from None
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("no safetensors header")
    return size, header


def _length(size: int, header: Mapping[str, Any]) -> int | None:
    """Returns the length of the file that a header describes, or None if the header is malformed."""
    try:
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        return 8 + size + max(map(int, ends), default=0)
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _checksum(key: str, data: bytes, start: int, end: int) -> str:
    view = memoryview(data)
    checksum = hashlib.sha256(key.encode())
    for piece in (b"\0", view[:start], b"0" * (end - start), view[end:]):
        checksum.update(piece)
    return checksum.hexdigest()


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def has_size(path: Path, size: Any) -> bool:
    """Returns whether a file exists and has the size in bytes that a record says."""
    try:
        return os.path.getsize(path) == size
    except OSError:
        return False


def sha256_file(path: Path) -> str:
    """Returns the hex sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Returns the hex sha256 of a JSON value in canonical form (sorted keys, no spaces, shortest floats)."""
    return hashlib.sha256(_CANONICAL.encode(value).encode()).hexdigest()
