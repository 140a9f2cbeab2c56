"""The shots of the demo campaign, and digests of their files."""

from __future__ import annotations

import hashlib
from pathlib import Path

NAMES = {f"{subject}/{prompt}-t01" for subject in ("astronaut", "drawn") for prompt in ("pumpkin", "beach")}


def digests(output: Path, suffix: str) -> dict[str, str]:
    return {
        str(path.relative_to(output)).removesuffix(suffix): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in output.rglob(f"*{suffix}")
        if ".lynx" not in path.parts
    }
