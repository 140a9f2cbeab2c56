"""Computes sha256 of weight files, and caches it between runs. Imports neither torch nor Ray."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.base_parts import base_parts
from lynx_parallel.inputs.cache_root import cache_root
from lynx_parallel.inputs.special import refuse_special
from lynx_parallel.inputs.weight_files import EXPERTS, FaceFiles, WeightFiles
from lynx_parallel.output.atomic import atomic_write
from lynx_parallel.output.checksums import digest, sha256_file

BOUNDARY_RATIO = "base/boundary_ratio"
_log = logging.getLogger(__name__)


def weight_digests(weights: WeightFiles, face: FaceFiles | None = None) -> dict[str, str]:
    """Returns sha256 by file. Keys are ``base/vae/config.json``, ``resampler``, ``id``, ``lora.0`` and so on.

    Face models count as ``face.detector`` and ``face.recognizer``. ``base/boundary_ratio`` is the number itself, for a
    base with two experts.

    Files are read once; the result is digest_cache under the user's cache folder by path, size and mtime.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    digest_cache = DigestCache()
    try:
        digests = {f"base/{path.relative_to(weights.base)}": digest_cache.sha256(path) for path in _base_files(weights)}
        for name in ("transformer", "transformer_2", "resampler", "id", "ref"):
            if path := getattr(weights, name):
                digests[name] = digest_cache.sha256(path)
        if boundary := base_parts(weights.base).boundary_ratio:
            digests[BOUNDARY_RATIO] = str(boundary)
        digests |= {f"lora.{i}": digest_cache.sha256(lora.path) for i, lora in enumerate(weights.loras)}
        if face is not None:
            digests["face.recognizer"] = digest_cache.sha256(face.recognizer)
            digests["face.detector"] = digest([digest_cache.sha256(path) for path in _detector_files(face.detector)])
    except OSError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror or error}") from None
    finally:
        digest_cache.save()  # also of a run broken off: hashing 70 GB takes minutes
    return digests


def _detector_files(detector: Path) -> list[Path]:
    """Returns the files of a pack that find faces."""
    if not detector.is_dir():
        return [detector]
    files = sorted(detector.rglob("*.onnx"))
    found = [path for path in files if path.name.startswith(("det", "scrfd"))] or files
    if not found:
        raise CheckpointError(f"{detector}: no face detector (.onnx) in it")
    return found


def _base_files(weights: WeightFiles) -> Iterator[Path]:
    for component in base_parts(weights.base).components:
        folder = weights.base / component
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path, folder))
        if not files:
            raise CheckpointError(f"{folder}: missing: is {weights.base} a Wan model in diffusers layout?")
        if component in EXPERTS.values() and getattr(weights, component):
            files = [folder / "config.json"]
        yield from files


def _is_hidden(path: Path, folder: Path) -> bool:
    """Returns whether a file is hidden. Such files (.DS_Store, .nfs…) come and go, and no loader reads them."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


class DigestCache:
    """Caches sha256 by (path, size, mtime) in the cache folder. A damaged cache file counts as empty."""

    def __init__(self) -> None:
        self.path = cache_root() / "digests.json"
        self.changed = False
        try:
            self.entries: dict[str, list[Any]] = dict(json.loads(self.path.read_text()))
        except (OSError, ValueError, TypeError, RecursionError):
            self.entries = {}

    def sha256(self, path: Path) -> str:
        refuse_special(path)
        real = os.path.realpath(path)
        status = os.stat(path)  # of a broken link, the error names the link
        seen = [status.st_size, status.st_mtime_ns]
        match self.entries.get(real):
            case [size, mtime_ns, str(known)] if [size, mtime_ns] == seen and len(known) == 64:
                return known
        _log.debug("hashing %s (%d bytes)", path, status.st_size)
        return self.add(path, sha256_file(Path(real)))

    def add(self, path: Path, sha256: str) -> str:
        """Remembers the digest of a file that has just been read; returns it."""
        status = os.stat(path)
        self.entries[os.path.realpath(path)] = [status.st_size, status.st_mtime_ns, sha256]
        self.changed = True
        return sha256

    def save(self) -> None:
        if not self.changed:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path) as part:
                part.write_text(json.dumps(self.entries))
        except OSError:
            pass  # a cache: the next run hashes again
