"""Content digests of pictures and embeddings. Imports neither torch nor Ray."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from lynx_parallel.errors import InputErrors
from lynx_parallel.output.checksums import sha256_file
from lynx_parallel.text import shown_path


def content_digest(path: Path) -> str:
    """Returns the sha256 of a picture or an embedding; read once for each size and mtime.

    Raises:
        InputErrors: it cannot be read.
    """
    try:
        status = path.stat()
        return _sha256(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise InputErrors([f"{shown_path(path)}: {error.strerror or error}"]) from None


@cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    return sha256_file(path)
