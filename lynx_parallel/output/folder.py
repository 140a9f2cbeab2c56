"""The output folder: paths, sidecars, publication, superseded files. The sidecars alone decide what is done.

Order of publication: latents, mp4, sidecar. The sidecar's rename is what makes a shot done.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from lynx_parallel.output.atomic import atomic_write, left_probes, move, naming, part_path, publish
from lynx_parallel.output.checksums import sha256_file
from lynx_parallel.output.posters import POSTER_SUFFIX, POSTERS
from lynx_parallel.output.prompt_files import PromptFiles
from lynx_parallel.output.shard import Shard, shard_folders
from lynx_parallel.output.sidecar import SUFFIXES, read_sidecar, write_sidecar

_POSTER_PART = re.compile(rf"(.+){re.escape(POSTER_SUFFIX)}\.[0-9]+\.part")
PART = re.compile(r"(.+)\.(mp4|latents\.safetensors|json)\.[0-9]+\.part")

_FOLDERS = ("superseded", "partial", "faces", "prompts", "latents", "candidates", "auditions", "scores")
"""Folders below ``.lynx`` in which runs write."""


class Output:
    """One output folder.

    Attributes:
        folder: ``<output>``; ours is ``<output>/.lynx/``.
        journal, status: of the whole folder, or of the shard.

    Args:
        shard: whose driver uses it; None for that of the whole campaign.
    """

    def __init__(self, folder: Path, shard: Shard | None = None):
        self.folder = folder
        self._root = str(folder)
        self.private = folder / ".lynx"
        own = self.private / "shards" / shard.folder if shard else self.private
        self.journal = own / "journal.jsonl"
        self.approvals = self.private / "approvals.jsonl"
        self.takes = self.private / "takes.json"
        self.status = own / "status.json"

    @property
    def journals(self) -> list[Path]:
        """The journals of the whole folder and of all shards. They may be missing."""
        return [self.private / "journal.jsonl", *(path / "journal.jsonl" for _, path in shard_folders(self.private))]

    def path(self, name: str, kind: str) -> Path:
        """Returns the path of a shot's ``latents``, ``video`` or ``sidecar``."""
        return self.folder / (name + SUFFIXES[kind])

    def poster(self, name: str) -> Path:
        """Returns the path of a shot's poster, which a report shows. It may be missing."""
        return self.folder / POSTERS / (name + POSTER_SUFFIX)

    def scores(self, name: str) -> Path:
        """Returns the path of a shot's scores, see ``output.scores``. It may be missing."""
        return self.private / "scores" / f"{name}.json"

    def audition(self, name: str) -> Path:
        """Returns the path of the record of a take's audition, see ``output.auditions``. It may be missing."""
        return self.private / "auditions" / f"{name}.json"

    def preview(self, name: str) -> Path:
        """Returns the path of the preview of a take's audition. It may be missing."""
        return self.private / "auditions" / f"{name}.mp4"

    def resume_state(self, latents_digest: str) -> Path:
        """Returns the path of the resume state of a shot with this digest."""
        return self.private / "partial" / f"{latents_digest}.safetensors"

    def resume_states(self) -> set[Path]:
        """Returns all resume states."""
        return set((self.private / "partial").glob("*.safetensors"))

    def prompts(self, salt: str) -> PromptFiles:
        """Returns where prompt embeddings are stored. All gangs share them."""
        return PromptFiles(self.private / "prompts", salt)

    def forget_prompts(self) -> None:
        """Deletes the prompt embeddings. A finished campaign no longer needs them."""
        shutil.rmtree(self.private / "prompts", ignore_errors=True)

    def logs(self, name: str, attempt: int) -> Path:
        """Returns the folder of one attempt's rank logs."""
        return self.private / "logs" / name / str(attempt)

    def next_attempt(self, name: str, least: int) -> int:
        """Returns the number of a shot's next attempt: after all attempts with logs, and at least ``least``."""
        made = [least - 1]
        with contextlib.suppress(OSError):
            made += [int(path.name) for path in self.logs(name, 0).parent.iterdir() if path.name.isdecimal()]
        return max(made) + 1

    def sidecar(self, name: str) -> dict[str, Any] | None:
        """Returns a shot's sidecar, or None if it is missing or cannot be read."""
        return read_sidecar(self._at(name, "sidecar"))

    def intact(self, name: str, sidecar: Mapping[str, Any], kind: str, *, verify: bool = False) -> bool:
        """Returns whether an output is the file that its sidecar lists.

        Its size must agree; its content is read where the mtime differs, or with ``verify``.
        """
        record = sidecar["outputs"].get(kind)
        path = self._at(name, kind)
        try:
            status = os.stat(path)
            if not isinstance(record, dict) or status.st_size != record.get("size"):
                return False
            if not verify and status.st_mtime_ns == record.get("mtime_ns"):
                return True
            return sha256_file(Path(path)) == record.get("sha256")
        except OSError:
            return False

    def has_files(self, name: str) -> bool:
        """Returns whether any file exists where a shot's files belong."""
        return any(os.path.lexists(self._at(name, kind)) for kind in SUFFIXES)

    def sidecars(
        self, *, but: Set[str] = frozenset(), names: Set[str] = frozenset()
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields every (name, sidecar) below the folder, sorted by name.

        Args:
            but: names whose sidecars are not read.
            names: further names that are known, as in ``files``.
        """
        suffix = SUFFIXES["sidecar"]
        found = {file.removesuffix(suffix) for file in self.files(but | names) if file.endswith(suffix)}
        for name in sorted(found - but):
            if (sidecar := self.sidecar(name)) is not None:
                yield name, sidecar

    def is_one(self) -> bool:
        """Returns whether this is an output folder: it holds ``.lynx``, or a sidecar at the place that it names."""
        return self.private.is_dir() or any(sidecar.get("name") == name for name, sidecar in self.sidecars())

    def sweep(self, ours: Set[str], *, alone: bool = True) -> int:
        """Removes what a killed run left half-written; returns how many files.

        Args:
            ours: shots the journal knows; only their temporaries go: a user's own ``.part`` (a download, say) stays.
            alone: whether no other driver is at work. If one is, temporaries that may be its own stay.
        """
        parts = [path for path, name in self.parts(ours) if name in ours]
        posters = self.folder / POSTERS
        for path in posters.rglob(f"*{POSTER_SUFFIX}.*.part"):
            match = _POSTER_PART.fullmatch(str(path.relative_to(posters)))
            parts += [path] if match and match[1] in ours else []
        if alone:
            for folder in _FOLDERS:
                parts += (self.private / folder).rglob("*.part")
            parts += left_probes(self.private)
        for path in parts:
            path.unlink(missing_ok=True)
        return len(parts)

    @contextlib.contextmanager
    def probe(self) -> Iterator[Path]:
        """Makes a new file for the time of the block, for other machines to look for."""
        self.private.mkdir(parents=True, exist_ok=True)
        path = self.private / f"probe-{uuid.uuid4().hex}"
        path.touch()
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def probe_shot(self, name: str, *, stale: bool) -> Iterator[Path]:
        """Publishes a small file where a shot's files belong, for the time of the block.

        Args:
            stale: whether old files are to be moved aside; this is tried as well.

        Raises:
            OSError: publishing or moving aside fails; names the file.
        """
        sidecar = self.path(name, "sidecar")
        part, path = part_path(sidecar, os.getpid()), part_path(sidecar, 0)  # names that ``sweep`` knows
        aside = self.private / "superseded" / f"probe-{uuid.uuid4().hex}.part"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with naming(part):
                part.write_bytes(b"probe")
            publish(part, path)
            yield path
            if stale:
                aside.parent.mkdir(parents=True, exist_ok=True)
                move(path, aside)
                aside.unlink()
        finally:
            for left in (part, path):
                left.unlink(missing_ok=True)

    def _at(self, name: str, kind: str) -> str:
        """Returns the same as ``path``, without the cost of a Path, because it is called for every shot."""
        return os.path.join(self._root, name + SUFFIXES[kind])

    def parts(self, names: Set[str] = frozenset()) -> Iterator[tuple[Path, str]]:
        """Yields each half-written file of a shot, and the shot's name. Other files may have such names too.

        Args:
            names: as in ``files``.
        """
        for file in self.files(names):
            if match := PART.fullmatch(file):
                yield self.folder / file, match[1]

    def files(self, names: Set[str] = frozenset()) -> Iterator[str]:
        """Yields every file below the folder, relative to it. Skips ``.lynx`` folders.

        Args:
            names: of shots. A link to a folder is followed only if one of these shots lies in it: any other link may
                lead to a large tree that is not ours.
        """
        linked = {self._at(name, "sidecar").rpartition("/")[0] for name in names}
        for folder, folders, files in os.walk(self._root, followlinks=True):
            folders[:] = [name for name in folders if name != ".lynx" and _is_ours(f"{folder}/{name}", linked)]
            below = os.path.relpath(folder, self._root)
            yield from (name if below == "." else f"{below}/{name}" for name in files)

    def supersede(self, name: str, kinds: tuple[str, ...]) -> None:
        """Moves a shot's old files aside, to ``.lynx/superseded/<old video digest, 8 digits>/``.

        What was moved there before is never replaced: the folder then is ``<8 digits>-2`` and so on. The
        sidecar goes last, so that a crash in between leaves a shot that is still known to be stale.
        """
        old = self.sidecar(name)
        digest8 = old["digests"]["video"][:8] if old else "unknown"
        sources = {kind: self.path(name, kind) for kind in SUFFIXES if kind in kinds}
        sources = {kind: path for kind, path in sources.items() if os.path.lexists(path)}
        for number in itertools.count(1):
            folder = self.private / "superseded" / (digest8 if number == 1 else f"{digest8}-{number}")
            targets = {kind: folder / (name + SUFFIXES[kind]) for kind in sources}
            if not any(map(os.path.lexists, targets.values())):
                break
        with contextlib.suppress(OSError):  # no reason to lose a shot
            if "video" in kinds and (poster := self.poster(name)).is_file():
                target = folder / (name + POSTER_SUFFIX)
                target.parent.mkdir(parents=True, exist_ok=True)
                move(poster, target)
        for kind, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            if kind == "sidecar" and "latents" not in kinds:
                # The latents stay in use; the superseded video keeps a copy of its sidecar.
                with atomic_write(target) as part:
                    part.write_bytes(sources[kind].read_bytes())
            else:
                move(sources[kind], target)

    def commit(
        self,
        name: str,
        kinds: tuple[str, ...],
        sidecar: dict[str, Any],
        parts: Mapping[str, Path] = {},
    ) -> None:
        """Publishes the files of an attempt that is finished, and then its sidecar.

        Args:
            kinds: outputs that this attempt wrote. Other outputs that the sidecar lists stay.
            parts: where ``latents``, ``video`` and ``poster`` are, if not in the ``.part`` files of a first attempt.
        """
        for kind in ("latents", "video"):
            path = self.path(name, kind)
            if kind in kinds:
                path.parent.mkdir(parents=True, exist_ok=True)
                publish(parts.get(kind) or part_path(path), path)
            if kind in sidecar["outputs"]:
                sidecar["outputs"][kind]["mtime_ns"] = path.stat().st_mtime_ns
        poster = self.poster(name)
        with contextlib.suppress(OSError):  # a report can do without
            if (part := parts.get("poster") or part_path(poster)).exists():
                poster.parent.mkdir(parents=True, exist_ok=True)
                os.replace(part, poster)
        write_sidecar(self.path(name, "sidecar"), sidecar)

    def record(self, run: str) -> Path:
        """Returns the folder of a run's record; see ``lynx_parallel.inputs.records``."""
        return self.private / "manifests" / run


def _is_ours(folder: str, linked: Set[str]) -> bool:
    """Returns whether a folder is to be entered: it is no link, or a folder of ``linked`` or one above."""
    return not os.path.islink(folder) or any(one == folder or one.startswith(f"{folder}/") for one in linked)
