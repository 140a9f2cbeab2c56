"""Finds what made a video file: its mark, its sidecar, and the output folder that knows it. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lynx_parallel.errors import InputErrors
from lynx_parallel.output.checksums import DIGEST, read_metadata, sha256_file
from lynx_parallel.output.folder import Output
from lynx_parallel.output.marks import Mark, read_mark
from lynx_parallel.output.sidecar import SUFFIXES
from lynx_parallel.text import shown_path


@dataclass(frozen=True)
class MadeBy:
    """What is known about a file.

    Attributes:
        mark: what the file says of itself; None if it says nothing.
        output: folder whose sidecar lists the file; None if none is known.
        name: of the shot in that folder.
        sidecar: of the shot.
    """

    path: Path
    mark: Mark | None = None
    output: Output | None = None
    name: str = ""
    sidecar: dict[str, Any] | None = None

    @property
    def kind(self) -> str:
        """``video`` or ``latents``."""
        return "latents" if self.path.name.endswith(SUFFIXES["latents"]) else "video"

    def verdict(self) -> tuple[bool, str]:
        """Compares the file with its sidecar. Reads all of it.

        Returns:
            Whether it is as it was made, and the result in words.

        Raises:
            OSError: the file cannot be read.
        """
        if self.sidecar is None:
            return True, "no sidecar found: not verified"
        facts = self.sidecar["outputs"].get(self.kind)
        if not isinstance(facts, dict):
            return False, f"its sidecar lists no {self.kind}"
        if self.path.stat().st_size != facts.get("size") or sha256_file(self.path) != facts.get("sha256"):
            return False, "differs from its sidecar: other content than was written"
        if self.mark is not None and self.mark.digest != self.sidecar["digests"]["video"]:
            return False, "differs from its sidecar: another digest"
        return True, "verified: the content that its sidecar lists"


def find_made_by(path: Path, folder: Path | None = None) -> MadeBy:
    """Returns what is known about a video, a file of latents, or the file of a sidecar.

    The sidecar is the one beside it. A file that was moved or renamed is looked for in ``folder``, by its digest.

    Args:
        folder: output folder to look in.

    Raises:
        InputErrors: no such file, or it cannot be read.
    """
    if path.name.endswith(SUFFIXES["sidecar"]):
        path = path.with_name(path.name.removesuffix(SUFFIXES["sidecar"]) + SUFFIXES["video"])
    try:
        mark = None if path.name.endswith(SUFFIXES["latents"]) else read_mark(path)
    except OSError as error:
        raise InputErrors([f"{shown_path(path)}: {error.strerror or error}"]) from None
    if folder is None:
        beside = _beside(path)
        return MadeBy(path, mark) if beside is None else MadeBy(path, mark, *beside, beside[0].sidecar(beside[1]))
    output = Output(Path(os.path.realpath(folder)))
    if not output.is_one():
        raise InputErrors([f"--output {shown_path(folder)}: not an output folder"])
    digest = mark.digest if mark else (read_metadata(path) or {}).get(DIGEST, "")
    for name, sidecar in output.sidecars():
        if digest and digest in sidecar["digests"].values():
            return MadeBy(path, mark, output, name, sidecar)
    return MadeBy(path, mark)


def _beside(path: Path) -> tuple[Output, str] | None:
    """Returns the output folder in which a file lies, and its shot's name, if it has a sidecar there."""
    real = Path(os.path.realpath(path))
    stem = real.name
    for suffix in (SUFFIXES["latents"], SUFFIXES["video"]):
        stem = stem.removesuffix(suffix)
    if not real.with_name(stem + SUFFIXES["sidecar"]).is_file():
        return None
    for folder in real.parents:
        if (folder / ".lynx").is_dir() and ".lynx" not in real.relative_to(folder).parts:
            return Output(folder), str((real.parent / stem).relative_to(folder))
    return Output(real.parent), stem
