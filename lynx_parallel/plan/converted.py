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
from lynx_parallel.inputs.weight_files import CONVERTED, WeightFiles
from lynx_parallel.output.atomic import atomic_write
from lynx_parallel.output.checksums import digest, sha256_file
from lynx_parallel.plan.hashing import DigestCache

FORMAT = 1
"""Version of a copy's content, part of its name. Increase it when a conversion writes something else."""
_PREFIX = "base/transformer/"


def with_converted(weights: WeightFiles, digests: Mapping[str, str], dtype: str) -> WeightFiles:
    """Returns the weights with the converted copy of their transformer, or unchanged if no complete copy exists.

    A single file that replaces the base's transformer has no copy.

    Args:
        digests: of the published files, by ``weight_digests``.
        dtype: of the pipeline.
    """
    if weights.transformer is not None:
        return weights
    root = _root(digests, dtype)
    return replace(weights, converted=root / "transformer") if _is_whole(root) else weights


def convert(
    weights: WeightFiles, digests: Mapping[str, str], dtype: str, on_progress: Callable[[int, int], None]
) -> WeightFiles:
    """Stores a copy of the transformer in the pipeline's dtype, unless one exists or the base already has that dtype.

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
    if found.converted or found.transformer:
        return found
    root = _root(digests, dtype)
    part = root.with_name(f"{root.name}.part")
    if not _run(weights.base / "transformer", part / "transformer", dtype, on_progress):
        return weights
    try:
        _publish(part, root, _sources(digests))
    except OSError as error:
        raise ClusterError(f"{root}: cannot be written: {error.strerror or error}") from None
    return with_converted(weights, digests, dtype)


def _sources(digests: Mapping[str, str]) -> dict[str, str]:
    return {name.removeprefix(_PREFIX): sha256 for name, sha256 in digests.items() if name.startswith(_PREFIX)}


def _root(digests: Mapping[str, str], dtype: str) -> Path:
    """Returns the folder of a copy. Its name is a digest of the published files: a copy of other files is not found."""
    return cache_root() / "converted" / digest([FORMAT, dtype, _sources(digests)])


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
