"""Finished latents of shots without a finished video. Imports neither torch nor Ray.

A rank writes them, as soon as it has them, to ``.lynx/latents/``. The driver publishes them with the video, or alone
if the video cannot be made. Their header holds the latents digest, so that ``plan`` accepts them without a sidecar, the
settings, and a checksum of the file.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lynx_parallel.output.atomic import atomic_write
from lynx_parallel.output.checksums import CHECKSUM_KEY, DIGEST, read_metadata
from lynx_parallel.output.folder import Output
from lynx_parallel.output.sidecar import SUFFIXES

SETTINGS = "settings"
"""Key in the header of the settings, as JSON, that the digest is of."""


def latents_metadata(digest: str, settings: Mapping[str, Any] | None) -> dict[str, str]:
    """Returns the metadata of a shot's latents."""
    return {DIGEST: digest, SETTINGS: json.dumps(settings or {}, sort_keys=True)}


def unpublished_path(output: Output, name: str) -> Path:
    """Returns where a shot's latents wait for their video."""
    return output.private / "latents" / (name + SUFFIXES["latents"])


def find_latents(output: Output, name: str, digests: Collection[str], *, published: bool) -> Path | None:
    """Returns a shot's finished latents, or None. Reads headers alone: encoding checks the content.

    Args:
        digests: that the latents may have, see ``ShotDigests.latents_digests``.
        published: whether to look where a shot's latents belong, too. A sidecar says more of those, if there is one.
    """
    paths = [unpublished_path(output, name), *([output.path(name, "latents")] if published else [])]
    return next((path for path in paths if _is_of(path, digests)), None)


def write_record(output: Output, name: str, record: Mapping[str, Any]) -> None:
    """Stores what the sidecar will say about the ranks that make the latents."""
    path = _record(output, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.write_text(json.dumps(record))


def read_record(output: Output, name: str) -> dict[str, Any]:
    """Returns what ``write_record`` stored, or an empty dict."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        record = json.loads(_record(output, name).read_bytes())
        return record if isinstance(record, dict) else {}
    return {}


def remove_unpublished(output: Output, name: str) -> None:
    """Removes the unpublished latents of a shot that is done, or must be rendered again."""
    for path in unpublished_files(output, name):
        path.unlink(missing_ok=True)


def unpublished_files(output: Output, name: str) -> tuple[Path, Path]:
    """Returns where a shot's latents wait, and where the record of its ranks does."""
    return unpublished_path(output, name), _record(output, name)


def all_unpublished(output: Output) -> set[Path]:
    """Returns all latents that wait, and the records of their ranks."""
    folder = output.private / "latents"
    return {path for kind in ("latents", "sidecar") for path in folder.rglob(f"*{SUFFIXES[kind]}")}


def _record(output: Output, name: str) -> Path:
    return output.private / "latents" / (name + SUFFIXES["sidecar"])


def _is_of(path: Path, digests: Collection[str]) -> bool:
    metadata = read_metadata(path)
    if not metadata or CHECKSUM_KEY not in metadata:
        return False
    return metadata.get(DIGEST) in digests
