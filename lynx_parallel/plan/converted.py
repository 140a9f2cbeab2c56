"""Stores a copy of a transformer in the pipeline's dtype, for a base that is published in another dtype.

A rank that reads fp32 files converts them into its own memory. A copy in the pipeline's dtype is mapped instead, so all
ranks of a machine share its pages. The values are identical bit for bit. Digests stay those of the published files.
Imports neither torch nor Ray.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from lynx_parallel.errors import CheckpointError, ClusterError
from lynx_parallel.inputs.cache_root import cache_root
from lynx_parallel.inputs.weight_files import CONVERTED, SECOND_EXPERT, WeightFiles
from lynx_parallel.output.atomic import atomic_write
from lynx_parallel.output.checksums import digest, sha256_file
from lynx_parallel.plan.hashing import DigestCache

_FIELDS = {"transformer": "converted", SECOND_EXPERT: "converted_2"}
"""Field of ``WeightFiles`` with the copy of each transformer."""
FORMAT = 1
"""Version of a copy's content, part of its name. Increase it when a conversion writes something else."""


def with_converted(weights: WeightFiles, digests: Mapping[str, str], dtype: str) -> WeightFiles:
    """Returns the weights with the converted copies of their transformers, as far as complete copies exist.

    A single file that replaces a transformer of the base has no copy.

    Args:
        digests: of the published files, by ``weight_digests``.
        dtype: of the pipeline.
    """
    for part, field in _FIELDS.items():
        if getattr(weights, part) is None and (sources := _sources(digests, part)):
            root = _root(sources, dtype)
            if _is_whole(root):
                weights = replace(weights, **{field: root / "transformer"})  # type: ignore[arg-type]
    return weights


def convert(
    weights: WeightFiles, digests: Mapping[str, str], dtype: str, on_progress: Callable[[int, int], None]
) -> WeightFiles:
    """Stores a copy of each transformer in the pipeline's dtype, unless one exists or the base already has that dtype.

    An interrupted conversion resumes with the file at which it stopped.

    Args:
        on_progress: called with the bytes written and the bytes to write.

    Returns:
        As ``with_converted``.

    Raises:
        CheckpointError: a file of the base cannot be read.
        ClusterError: the copy cannot be written.
    """
    found = with_converted(weights, digests, dtype)
    for part, field in _FIELDS.items():
        sources = _sources(digests, part)
        if getattr(found, field) is None and getattr(found, part) is None and sources:
            _convert(weights.base / part, sources, dtype, on_progress)
    return with_converted(weights, digests, dtype)


def _convert(source: Path, sources: Mapping[str, str], dtype: str, on_progress: Callable[[int, int], None]) -> None:
    root = _root(sources, dtype)
    part = root.with_name(f"{root.name}.part")
    if not _run(source, part / "transformer", dtype, on_progress):
        return
    try:
        _publish(part, root, sources)
    except OSError as error:
        raise ClusterError(f"{root}: cannot be written: {error.strerror or error}") from None


def _sources(digests: Mapping[str, str], part: str) -> dict[str, str]:
    """Returns the sha256 of the published files of a transformer, by name."""
    prefix = f"base/{part}/"
    return {name.removeprefix(prefix): sha256 for name, sha256 in digests.items() if name.startswith(prefix)}


def _root(sources: Mapping[str, str], dtype: str) -> Path:
    """Returns the folder of a copy. Its name is a digest of the published files: a copy of other files is not found."""
    return cache_root() / "converted" / digest([FORMAT, dtype, sources])


def _is_whole(root: Path) -> bool:
    """Returns whether a copy holds every file as it was written."""
    digest_cache = DigestCache()
    try:
        files = json.loads((root / CONVERTED).read_text(encoding="utf-8"))["files"]
        whole = bool(files) and all(digest_cache.sha256(root / name) == sha256 for name, sha256 in files.items())
    except (OSError, ValueError, TypeError, KeyError, AttributeError, CheckpointError):
        return False
    digest_cache.save()
    return whole


def _run(source: Path, target: Path, dtype: str, on_progress: Callable[[int, int], None]) -> bool:
    """Converts in a child process. Returns False if the files already have this dtype."""
    command = [sys.executable, "-m", "lynx_parallel.model.convert", str(source), str(target), dtype]
    total = 0
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if not line.strip().isdecimal():
                continue  # a library may print to stdout
            done, total = (int(line), total) if total else (0, int(line))
            on_progress(done, total)
        process.wait()
        errors.seek(0)
        lines = errors.read().strip().splitlines() or ["no message"]
    if process.returncode:
        kind = CheckpointError if process.returncode == CheckpointError.exit_code else ClusterError
        raise kind(f"{source}: converting to {dtype} failed: {lines[-1]}")
    return total > 0


def _publish(part: Path, root: Path, sources: Mapping[str, str]) -> None:
    """Writes the manifest of a finished copy, then renames the copy to its final name."""
    for cut_off in (part / "transformer").glob("*.part"):
        cut_off.unlink(missing_ok=True)
    sha256 = {path.relative_to(part).as_posix(): sha256_file(path) for path in sorted((part / "transformer").iterdir())}
    with atomic_write(part / CONVERTED) as manifest:
        manifest.write_text(json.dumps({"version": FORMAT, "sources": dict(sources), "files": sha256}, indent=2) + "\n")
    if root.exists():  # damaged, or else it would have been used
        shutil.rmtree(root)
    part.rename(root)
    digest_cache = DigestCache()
    for name in sha256:
        digest_cache.add(root / name, sha256[name])
    digest_cache.save()
