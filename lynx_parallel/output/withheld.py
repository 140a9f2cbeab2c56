"""Shots whose video the safety checker of the site withheld: ``<output>/.lynx/withheld/<latents digest>.json``.

Nothing of such a shot is kept. The record says that rendering it again would give the same result. Imports neither
torch nor Ray.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from lynx_parallel.output.atomic import atomic_write
from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import now
from lynx_parallel.output.sidecar import encode_text

WITHHELD_VERSION = 1


def record_withheld(output: Output, name: str, latents: str, checker: str, reason: str) -> None:
    """Records that a shot was withheld.

    Args:
        latents: digest of its settings.
        checker: digest of the safety checker.

    Raises:
        OSError: the record cannot be written.
    """
    path = _path(output, latents)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"version": WITHHELD_VERSION, "name": name, "checker": checker, "reason": reason, "time": now()}
    with atomic_write(path) as part:
        part.write_bytes(encode_text(json.dumps(record, ensure_ascii=False) + "\n"))


def withheld_reason(output: Output, latents: str, checker: Callable[[], str]) -> str:
    """Returns why a shot of these settings was withheld by this checker, or an empty text.

    Args:
        checker: returns the digest of the safety checker. It is called if there is a record.
    """
    try:
        found = json.loads(_path(output, latents).read_bytes())
        same = found["version"] == WITHHELD_VERSION and found["checker"] == checker()
        return str(found["reason"]) if same else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _path(output: Output, latents: str) -> Path:
    return output.private / "withheld" / f"{latents}.json"
