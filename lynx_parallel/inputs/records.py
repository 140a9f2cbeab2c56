"""Records of runs: their options and inputs, so that a run can be explained and repeated.

Each run has a folder, ``<output>/.lynx/manifests/<stamp>/``. It holds copies of the text files and ``run.json``.
``lynx-render`` takes that folder in place of a manifest. Imports neither torch nor Ray.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.content import content_digest
from lynx_parallel.inputs.notices import Notice
from lynx_parallel.text import shown_path

RUN_FILE = "run.json"
RECORD_VERSION = 1


@dataclass(frozen=True)
class Request:
    """The command line of a run.

    Attributes:
        command: all of it, as typed.
        set, only: the values of ``--set`` and ``--only``.
        options: further options that say how to render, each as typed: ``("--ulysses", "2")``.
    """

    command: tuple[str, ...] = ()
    set: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    options: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Record:
    """The record of one run.

    Attributes:
        folder: where it is.
        manifest: path of the manifest, which may no longer exist.
        output: the output folder that the record is in.
        request: what was asked for.
        version: of lynx-parallel.
        copies: copies of the text files, by the path of the original.
        shipped: those of the originals that come with lynx-parallel: pipelines.
        digests: sha256 of the copies, by the path of the original.
        pipeline: the pipeline file's own path.
        pictures: sha256 of each picture and embedding, by path; None where it could not be read.
    """

    folder: Path
    manifest: Path
    output: Path
    request: Request = Request()
    version: str = ""
    copies: Mapping[Path, Path] = field(default_factory=dict)
    shipped: frozenset[Path] = frozenset()
    digests: Mapping[Path, str] = field(default_factory=dict)
    pipeline: Path = Path()
    pictures: Mapping[Path, str | None] = field(default_factory=dict)

    def as_of_today(self, manifest: Path) -> Record:
        """Returns the record with the shipped pipeline that is installed now, and with the manifest's current place.

        Args:
            manifest: its current path. Its folder may have been moved, with the files in it.
        """
        before, now = os.path.realpath(self.manifest.parent), os.path.realpath(manifest.parent)
        copies = {path: copy for path, copy in self.copies.items() if path not in self.shipped}
        if before != now:
            copies = {Path(now, os.path.relpath(path, before)): copy for path, copy in copies.items()}
        own = self.copies[self.manifest]
        return replace(self, manifest=manifest, copies={**copies, Path(os.path.abspath(manifest)): own})

    def arguments(self, known: Iterable[str]) -> list[str]:
        """Returns the options of the run, but for ``--set output=…``, which the record's place decides.

        Args:
            known: options of the command that will get them; others are left out.
        """
        request, names = self.request, set(known)
        options = [*request.options]
        options += [("--set", value) for value in request.set if not value.startswith("output=")]
        options += [("--only", pattern) for pattern in request.only]
        return [word for option in options if option[0] in names for word in option]

    def changed_pictures(self) -> Iterator[Notice]:
        """Yields a warning for each picture or embedding that is not what it was."""
        for path, digest in self.pictures.items():
            if digest is not None and os.path.isfile(path) and content_digest(path) != digest:
                yield Notice("picture-changed", "a picture differs from that of the recorded run", shown_path(path))


def find_record(manifest: Path | str) -> Record | None:
    """Returns the record that a command's MANIFEST names, or None if it names something else.

    Args:
        manifest: a record's folder, or the ``run.json`` in it.

    Raises:
        InputErrors: it names a record that cannot be read.
    """
    path = Path(manifest)
    if path.name == RUN_FILE:
        return read_record(path.parent)  # or else a manifest that happens to have this name
    if not os.path.isfile(path / RUN_FILE):
        return None
    record = read_record(path)
    if record is None:
        raise InputErrors([f"{shown_path(path / RUN_FILE)}: not the record of a run that this version can read"])
    return record


def read_record(folder: Path) -> Record | None:
    """Returns the record in a folder, or None if there is none that can be read."""
    folder = Path(os.path.abspath(folder))
    try:
        found = json.loads((folder / RUN_FILE).read_bytes())
        if found["version"] != RECORD_VERSION:
            return None
        return _record(folder, found)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _record(folder: Path, found: Mapping[str, Any]) -> Record:
    inside = folder.parent.name == "manifests" and folder.parent.parent.name == ".lynx"
    return Record(
        folder,
        manifest=Path(found["manifest"]),
        output=folder.parents[2] if inside else Path(found["output"]),  # the whole folder may have been moved
        request=Request(
            tuple(found["command"]), tuple(found["set"]), tuple(found["only"]),
            tuple(tuple(option) for option in found["options"]),
        ),
        version=str(found["versions"]["lynx_parallel"]),
        copies={Path(file["path"]): folder / Path(file["copy"]).name for file in found["files"]},
        digests={Path(file["path"]): str(file["sha256"]) for file in found["files"]},
        shipped=frozenset(Path(file["path"]) for file in found["files"] if file["shipped"]),
        pipeline=Path(found["pipeline"]),
        pictures={Path(one["path"]): one["sha256"] for one in found["pictures"]},
    )  # fmt: skip
