"""Finds the subject of each shot, resume state and superseded file in an output folder.

Imports neither torch nor Ray.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import read_journals
from lynx_parallel.output.posters import POSTER_SUFFIX
from lynx_parallel.output.sidecar import SUFFIXES


class Owners:
    """Reads the sidecars and the journal of an output folder.

    A sidecar says whose its files are. The journal says it of files without one: a resume state, or what a killed run
    left. Records of version 0.1.0 have no subject. Then a sidecar of the same name decides, or else the name, which
    starts with the subject unless the manifest has a ``name``.
    """

    def __init__(self, output: Output):
        self._output = output
        self._finished: dict[str, str] = {}
        self._hosts: dict[str, set[str]] = {}
        self._attempted: dict[str, str | None] = {}
        self._states: dict[str, tuple[str, str | None]] = {}
        self._moved: dict[str, str] = {}
        self._aside = Output(output.private / "superseded")
        self._read_journal()
        for name, sidecar in output.sidecars(names=self.names):
            self._note(self._finished, name, sidecar)
        for name, sidecar in self._aside.sidecars():
            self._note(self._moved, name, sidecar)

    @property
    def names(self) -> set[str]:
        """Names of the shots that were ever tried here."""
        return set(self._attempted)

    @property
    def subjects(self) -> set[str]:
        """Subjects of whom there is any record."""
        named = {subject for subject in self._attempted.values() if subject is not None}
        with contextlib.suppress(OSError):
            named |= {path.name for path in (self._output.private / "faces").iterdir()}
        return named | set(self._finished.values()) | set(self._moved.values())

    def hosts(self, subject: str) -> set[str]:
        """Returns the machines that rendered a subject's videos."""
        return self._hosts.get(subject, set())

    def attempted(self, name: str) -> bool:
        """Returns whether a shot of this name was ever tried here."""
        return name in self._attempted

    def shots(self, subject: str) -> list[str]:
        """Returns the names of a subject's shots, finished or tried."""
        tried = {name for name in self._attempted if name not in self._finished and self.of(name) == subject}
        return sorted(tried | {name for name, owner in self._finished.items() if owner == subject})

    def of(self, name: str) -> str | None:
        """Returns the subject of a shot's files that have no sidecar, or None if nothing says it."""
        moved = (owner for path, owner in self._moved.items() if path.partition("/")[2] == name)
        known = self._attempted.get(name) or self._finished.get(name) or next(moved, None)
        return known or (name.partition("/")[0] if "/" in name else None)

    def of_state(self, digest: str) -> str | None:
        """Returns the subject of the resume state of a latents digest."""
        if digest not in self._states:
            return None
        name, subject = self._states[digest]
        return subject or self.of(name)

    def superseded(self) -> Iterator[tuple[Path, str | None]]:
        """Yields each superseded file and its subject."""
        half_written = dict(self._aside.parts())
        for file in sorted(self._aside.files()):
            path = self._aside.folder / file
            suffixes = (*SUFFIXES.values(), POSTER_SUFFIX)
            suffix = next((suffix for suffix in suffixes if file.endswith(suffix)), None)
            name = half_written.get(path) or (file.removesuffix(suffix) if suffix else None)
            if name is not None:
                yield path, self._moved.get(name) or self.of(name.partition("/")[2])

    def _note(self, owners: dict[str, str], name: str, sidecar: Mapping[str, Any]) -> None:
        shot, ranks = sidecar.get("shot"), sidecar.get("ranks")
        subject = shot.get("subject") if isinstance(shot, dict) else None
        if not isinstance(subject, str):
            return
        owners[name] = subject
        hosts = (rank.get("host") for rank in ranks if isinstance(rank, dict)) if isinstance(ranks, list) else ()
        self._hosts.setdefault(subject, set()).update(host for host in hosts if isinstance(host, str))

    def _read_journal(self) -> None:
        for record in read_journals(*self._output.journals):
            with contextlib.suppress(KeyError):
                name, subject, digest = str(record["name"]), record.get("subject"), record.get("latents")
                subject = subject if isinstance(subject, str) else self._attempted.get(name)
                self._attempted[name] = subject
                if isinstance(digest, str):
                    self._states[digest] = name, subject
