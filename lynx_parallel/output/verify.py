"""Reads a whole output folder and lists what is damaged, missing or foreign. Writes nothing, renders nothing.

Imports neither torch nor Ray.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lynx_parallel.output.checksums import CHECKSUM_KEY, DIGEST, metadata_of, read_metadata, sha256_file
from lynx_parallel.output.folder import PART, Output
from lynx_parallel.output.journal import History
from lynx_parallel.output.posters import POSTER_SUFFIX, POSTERS, REPORT
from lynx_parallel.output.sidecar import SUFFIXES

Kind = Literal["damaged", "missing", "orphan", "unfinished", "foreign"]
FAULTS: tuple[Kind, ...] = ("damaged", "missing")
"""Kinds for which ``verify`` exits with 1. The others are for information."""


@dataclass(frozen=True)
class Finding:
    """One file that is damaged, missing or foreign.

    Attributes:
        kind: ``damaged``: other bytes than were written; ``missing``: it should be there; ``orphan``: of a shot that
            the manifest no longer has; ``unfinished``: of a run that was killed, or is at work; ``foreign``: not ours.
        path: relative to the output folder.
        reason: in words.
    """

    kind: Kind
    path: str
    reason: str


@dataclass
class Report:
    """The result of a check.

    Attributes:
        files, bytes: that were read whole.
    """

    findings: list[Finding] = field(default_factory=list)
    files: int = 0
    bytes: int = 0

    @property
    def exit_code(self) -> int:
        return int(any(finding.kind in FAULTS for finding in self.findings))

    def count(self, kind: Kind) -> int:
        return sum(finding.kind == kind for finding in self.findings)


def verify(output: Output, shots: Set[str] | None = None, expected: Set[str] = frozenset()) -> Report:
    """Reads every file that has a checksum: outputs, resume states, unpublished latents, superseded files.

    Args:
        shots: names of all shots of the manifest; None without a manifest. Without one, shots that were never made and
            orphans are unknown.
        expected: those of them that must be there.
    """
    return _Verification(output, shots, expected).run()


class _Verification:
    def __init__(self, output: Output, shots: Set[str] | None, expected: Set[str]):
        self.output = output
        self.shots = shots
        self.expected = expected
        history = History.read(*output.journals)
        self.known = history.attempted | set(shots or ())
        self.finished = history.finished if shots is None else history.finished & shots
        self.report = Report()

    def run(self) -> Report:
        files = set(self.output.files(self.known)) - {REPORT}
        sidecars = dict(self.output.sidecars(names=self.known))
        files -= {f"{POSTERS}/{name}{POSTER_SUFFIX}" for name in self.known | sidecars.keys()}
        for name in sorted(sidecars):
            files -= self._outputs(self.output, name, sidecars[name])
            if self.shots is not None and name not in self.shots:
                self._add("orphan", name + SUFFIXES["sidecar"], "not in the manifest any more; left as it is")
        for name in sorted(self.known - sidecars.keys()):
            files -= self._without_sidecar(name, files)
        for file in sorted(files):
            match = PART.fullmatch(file)
            if match and match[1] in self.known | sidecars.keys():
                self._add("unfinished", file, "of a run that was killed, or is at work")
            else:
                self._add("foreign", file, "not a file of this folder's shots")
        self._private()
        return self.report

    def _outputs(self, output: Output, name: str, sidecar: dict[str, Any], *, partly: bool = False) -> set[str]:
        """Checks the files that a sidecar lists. Returns the names of all files of the shot.

        Args:
            partly: whether files may be missing, as in a folder of superseded ones.
        """
        for kind, record in sidecar["outputs"].items():
            if kind not in SUFFIXES:
                continue
            path = output.path(name, kind)
            if not isinstance(record, dict):
                self._add("damaged", output.path(name, "sidecar"), f"what it says of the {kind} cannot be read")
            elif os.path.lexists(path):
                self._read(path, partial(_differs, record))
            elif not partly:
                self._add("missing", path, f"its sidecar lists {'these' if kind == 'latents' else 'this'} {kind}")
        return {name + suffix for suffix in SUFFIXES.values()}

    def _without_sidecar(self, name: str, files: Set[str]) -> set[str]:
        """Reports a shot of ours that has no readable sidecar. Returns the names of its files."""
        mine = {kind: name + suffix for kind, suffix in SUFFIXES.items()}
        there = {kind for kind, file in mine.items() if file in files}
        waits = self.output.private / "latents" / mine["latents"]
        finished = [path for path in (waits, self.output.path(name, "latents")) if _is_sealed(path)]
        if "latents" in there and self.output.path(name, "latents") in finished:
            self._read(self.output.path(name, "latents"), _without_checksum)
        if "sidecar" in there:
            self._add("damaged", mine["sidecar"], "not a readable sidecar")
        elif finished:
            self._add("missing", mine["video"], "its latents are finished, its video is not; the next run encodes them")
        elif there:
            self._add("missing", mine["sidecar"], "there are files of this shot, but no sidecar")
        elif name in self.finished:
            self._add("missing", mine["video"], "the journal says that it was finished, and none of its files is there")
        elif name in self.expected:
            self._add("missing", mine["video"], "not rendered yet")
        return set(mine.values())

    def _private(self) -> None:
        """Checks what ``.lynx`` keeps for later runs."""
        private = self.output.private
        for folder, damage in (("partial", _broken), ("prompts", _broken), ("latents", _without_checksum)):
            for path in sorted((private / folder).rglob("*.safetensors")):
                self._read(path, damage)
        for path in sorted((private / "superseded").glob("*")):
            old = Output(path)
            for name, sidecar in old.sidecars():
                self._outputs(old, name, sidecar, partly=True)

    def _read(self, path: Path, damage: Callable[[Path], str]) -> None:
        """Reads a file whole and reports it if it is damaged."""
        try:
            reason = damage(path)
            self.report.files += 1
            self.report.bytes += path.stat().st_size
        except OSError as error:
            reason = error.strerror or str(error)
        if reason:
            self._add("damaged", path, reason)

    def _add(self, kind: Kind, path: Path | str, reason: str) -> None:
        shown = os.path.relpath(path, self.output.folder) if isinstance(path, Path) else path
        self.report.findings.append(Finding(kind, shown, reason))


def _differs(record: dict[str, Any], path: Path) -> str:
    if not path.is_file():
        return "not a regular file"
    if path.stat().st_size != record.get("size"):
        return f"{path.stat().st_size} bytes, its sidecar says {record.get('size')}"
    return "" if sha256_file(path) == record.get("sha256") else "its content differs from the sidecar's checksum"


def _broken(path: Path) -> str:
    """Returns what is wrong with a file that an earlier version may have written without a checksum."""
    return "" if metadata_of(path.read_bytes()) is not None else "its checksum or its size differs"


def _without_checksum(path: Path) -> str:
    return "" if CHECKSUM_KEY in (metadata_of(path.read_bytes()) or {}) else "its checksum differs"


def _is_sealed(path: Path) -> bool:
    metadata = read_metadata(path) or {}
    return DIGEST in metadata and CHECKSUM_KEY in metadata


def by_kind(findings: list[Finding]) -> Iterator[Finding]:
    """Yields the findings, the worst kinds first."""
    order = ("damaged", "missing", "orphan", "unfinished", "foreign")
    yield from sorted(findings, key=lambda finding: (order.index(finding.kind), finding.path))
