"""Sidecars: their version, and the suffixes of a shot's files. Imports neither torch nor Ray."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lynx_parallel.output.atomic import atomic_write

SIDECAR_VERSION = 1


SUFFIXES = {"latents": ".latents.safetensors", "video": ".mp4", "sidecar": ".json"}
"""Suffixes of a shot's files by kind, in the order of publication."""


MAX_SIDECAR_BYTES = 16 * 2**20


_BEGINNING = re.compile(rb'\{\s*"version": %d,' % SIDECAR_VERSION)
_DIGEST = re.compile(r"[0-9a-f]{64}")


def read_sidecar(path: str) -> dict[str, Any] | None:
    """Returns a sidecar, or None for any other file: the folder may hold other people's files."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_SIDECAR_BYTES:
            return None
        with open(path, "rb", buffering=0) as file:
            sidecar = json.loads(file.read())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(sidecar, dict) or sidecar.get("version") != SIDECAR_VERSION:
        return None
    if not all(isinstance(sidecar.get(key), dict) for key in ("digests", "outputs", "settings", "encoding")):
        return None
    digests = (str(sidecar["digests"].get(key)) for key in ("latents", "video"))
    return sidecar if all(map(_DIGEST.fullmatch, digests)) else None


def write_sidecar(path: Path, sidecar: Mapping[str, Any]) -> None:
    """Writes a sidecar, with its version. It appears whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    text = json.dumps({"version": SIDECAR_VERSION, **sidecar}, indent=2, ensure_ascii=False) + "\n"
    with atomic_write(path) as part:
        part.write_bytes(encode_text(text))


def looks_like_sidecar(path: str) -> bool:
    """Returns whether a file begins as a sidecar does. Much faster than ``read_sidecar``, for counting."""
    try:
        with open(path, "rb", buffering=0) as file:
            return _BEGINNING.match(file.read(64)) is not None
    except OSError:
        return False


def encode_text(text: str) -> bytes:
    """Returns UTF-8. A file name of another encoding becomes JSON's own escapes."""
    return text.encode(errors="backslashreplace")
