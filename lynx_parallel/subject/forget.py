"""Finds and removes everything of a subject in this machine's cache and in the output folders of its campaigns.

``find`` lists it, ``forget`` removes what is not a finished video. Imports neither torch nor Ray.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lynx_parallel.inputs.redact import mentions, redact
from lynx_parallel.output.candidates import candidate_name
from lynx_parallel.output.folder import Output
from lynx_parallel.output.modes import reason
from lynx_parallel.output.owners import Owners
from lynx_parallel.output.posters import REPORT
from lynx_parallel.output.prune import remove_empty_folders
from lynx_parallel.output.shard import FolderLock
from lynx_parallel.output.takes import changing, read_takes
from lynx_parallel.subject.cache import SubjectCache, check_ids, faces, remove

KINDS = {
    "cached": "cached face data",
    "crops": "face crops",
    "states": "resume states",
    "superseded": "superseded files",
    "unfinished": "half-written files",
    "candidates": "candidates and previews that did not become a shot",
    "scores": "scores",
}
"""Descriptions of the removed files, by attribute of ``Found``."""


@dataclass
class Found:
    """The files of one subject.

    Attributes:
        cached: files in this machine's cache.
        crops: folders of crops.
        states: resume states.
        superseded: earlier videos that were moved aside, with their siblings.
        unfinished: half-written files of a run that was killed.
        candidates: candidates of the gate, previews of auditions, and their records and posters.
        scores: of videos and candidates.
        lines: files with lines about the subject, which are removed with the videos.
        shots: names of its shots in each output folder.
        videos: one file per finished shot: the video, or the latents of one that is gone.
        files: all files of finished shots, each shot's sidecar last; with their posters if they are to be removed.
            Otherwise only the user deletes them.
        logs: folders of the logs of its attempts, if videos are removed.
        takes: number of its takes with seeds of their own.
        hosts: other machines that rendered the subject. Their caches are not seen from here.
    """

    subject: str
    cached: list[Path] = field(default_factory=list)
    crops: list[Path] = field(default_factory=list)
    states: list[Path] = field(default_factory=list)
    superseded: list[Path] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)
    candidates: list[Path] = field(default_factory=list)
    scores: list[Path] = field(default_factory=list)
    lines: list[Path] = field(default_factory=list)
    shots: dict[Path, list[str]] = field(default_factory=dict)
    videos: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)
    takes: int = 0
    with_videos: bool = False

    @property
    def removable(self) -> list[Path]:
        """Files that ``forget`` removes. A sidecar goes after the files that it names, which are found by it."""
        found = [path for kind in KINDS for path in getattr(self, kind)]
        return [*found, *self.logs, *self.files] if self.with_videos else found

    @property
    def left(self) -> list[Path]:
        """Files that ``forget`` should have removed and that still exist."""
        return [path for path in self.removable if os.path.lexists(path)]


@dataclass
class Search:
    """The result of ``find``.

    Attributes:
        wanted: real paths of the output folders in which each subject was looked for; some may be missing.
        unowned: resume states and superseded files whose subject no record names.
        others: other subjects in these folders.
    """

    wanted: Mapping[str, Collection[Path]]
    subjects: dict[str, Found]
    unowned: list[Path] = field(default_factory=list)
    others: set[str] = field(default_factory=set)

    @property
    def outputs(self) -> list[Path]:
        return sorted({output for outputs in self.wanted.values() for output in outputs})


def cached_outputs(subjects: Collection[str]) -> dict[str, set[Path]]:
    """Returns the output folders that used each subject, as far as this machine's cache knows.

    Raises:
        InputErrors: no subject id.
        OSError: the cache cannot be read.
    """
    check_ids(subjects)
    return SubjectCache().uses(subjects)


def find(wanted: Mapping[str, Collection[Path]], *, with_videos: bool = False) -> Search:
    """Looks for all that is kept of subjects; removes nothing.

    Args:
        wanted: real paths of the output folders to search, by subject. Of the cache, only what these folders used
            counts.
        with_videos: whether finished videos are to be removed, too.

    Raises:
        InputErrors: no subject id.
        OSError: the cache or an output folder cannot be read.
    """
    check_ids(wanted)
    search = Search(wanted, {name: Found(name, with_videos=with_videos) for name in wanted})
    for name, found in search.subjects.items():
        found.cached = SubjectCache().kept({name: wanted[name]})
    for folder in search.outputs:
        if folder.is_dir():
            _search(Output(folder), search)
    return search


def _search(output: Output, search: Search) -> None:
    owners = Owners(output)
    found = {name: found for name, found in search.subjects.items() if output.folder in search.wanted[name]}
    search.others |= owners.subjects
    for subject, one in found.items():
        if os.path.lexists(crops := faces(output.folder, subject)):
            one.crops.append(crops)
        one.hosts = sorted({*one.hosts, *owners.hosts(subject)} - {socket.gethostname()})
        one.shots[output.folder] = owners.shots(subject)
        if one.with_videos:
            one.lines += mentions(output, subject, one.shots[output.folder])
        for name in owners.shots(subject):
            _search_candidates(output, name, one)
            poster, sidecar = output.poster(name), output.path(name, "sidecar")
            paths = [output.path(name, "video"), output.path(name, "latents"), *([poster] if one.with_videos else [])]
            paths = [path for path in (*paths, sidecar) if path.is_file()]
            one.files += paths
            one.videos += [path for path in paths[:1] if path not in (poster, sidecar)]
            if one.with_videos and (logs := output.logs(name, 0).parent).is_dir():
                # Only attempts: the logs of another shot may lie below, as those of a/b do below a.
                one.logs += sorted(path for path in logs.iterdir() if path.name.isdecimal())
        if one.with_videos:
            one.takes += sum(key[0] == subject for key in read_takes(output.takes))

    def sort(kind: str, path: Path, owner: str | None) -> None:
        if owner is None:
            search.unowned.append(path)
        elif owner in found:
            getattr(found[owner], kind).append(path)

    for path in sorted((output.private / "partial").glob("*.safetensors*")):
        sort("states", path, owners.of_state(path.name.partition(".")[0]))
    for path, owner in owners.superseded():
        sort("superseded", path, owner)
    for path in sorted((output.private / "latents").rglob("*")):
        if path.is_file():
            sort("unfinished", path, owners.of(_shot_of(path, output.private / "latents")))
    for path in sorted((output.private / "damaged").rglob("*")):
        if path.is_file():
            state = owners.of_state(path.name.partition(".")[0])
            sort("unfinished", path, state or owners.of(_shot_of(path, output.private / "damaged")))
    for path, name in output.parts(owners.names):
        if owners.attempted(name):  # another .part, such as a browser's download, is not ours
            sort("unfinished", path, owners.of(name))


def _search_candidates(output: Output, name: str, found: Found) -> None:
    """Adds the candidates, previews and scores of a shot. Those of another shot may lie below its folders."""
    private = output.private
    own = candidate_name(name, 0).rpartition("/")[0].removeprefix(".lynx/")
    for folder, kind in ((private / own, "candidates"), (private / "scores" / ".lynx" / own, "scores"),
                         (output.poster(f".lynx/{own}/s0").parent, "candidates")):  # fmt: skip
        if folder.is_dir():
            getattr(found, kind).extend(sorted(path for path in folder.glob("s[0-9]*.*") if path.is_file()))
    paths = (output.preview(name), output.audition(name))
    found.candidates += [path for path in paths if path.is_file()]
    found.scores += [path for path in (output.scores(name),) if path.is_file()]


def _shot_of(path: Path, folder: Path) -> str:
    """Returns the name of the shot of a file that was put below a folder of ``.lynx`` by the shot's name."""
    name = path.relative_to(folder).as_posix()
    return re.sub(r"\.(latents\.safetensors|json)(\.[0-9]+)?(\.part)?$", "", name)


def forget(search: Search, warn: Callable[[str], None]) -> None:
    """Removes what ``find`` found; finished videos if it was asked for them. ``Found.left`` tells what is left.

    Raises:
        ClusterError: a run is at work in one of the output folders; nothing is removed then.
        OSError: the cache cannot be changed.
    """
    with contextlib.ExitStack() as locks:
        for output in search.outputs:
            if os.access(private := Output(output).private, os.W_OK):
                locks.enter_context(FolderLock(private))
        cache = SubjectCache(warn=warn)
        by_cache = {faces(output, name) for name, used in cache.uses(search.subjects).items() for output in used}
        cache.forget(search.wanted)
        for found in search.subjects.values():
            for path in found.left:
                if path in by_cache:  # reported by the cache
                    continue
                try:
                    remove(path)
                except OSError as error:
                    warn(f"{path}: cannot be removed: {reason(error)}")
        for output in search.outputs:
            remove_empty_folders(Output(output).private / "superseded")
            for name in ("candidates", "auditions", "scores"):
                remove_empty_folders(Output(output).private / name)
            wanted_here = {name for name, outputs in search.wanted.items() if output in outputs}
            with_videos = {name for name in wanted_here if search.subjects[name].with_videos}
            _forget_takes(Output(output), with_videos)
            for name in with_videos:
                _remove_empty_parents(Output(output), search.subjects[name].shots.get(output, ()))
                try:
                    redact(Output(output), name, search.subjects[name].shots.get(output, ()))
                except OSError as error:
                    warn(f"{output}: lines of {name} remain: {reason(error)}")


def _remove_empty_parents(output: Output, names: Collection[str]) -> None:
    """Removes the folders of shots that are empty now. Their names may hold the subject's id."""
    for name in names:
        for path in (output.path(name, "video"), output.poster(name), output.poster(candidate_name(name, 0))):
            for folder in path.parents:
                if folder == output.folder:
                    break
                with contextlib.suppress(OSError):  # not empty, or missing
                    folder.rmdir()


def _forget_takes(output: Output, subjects: Collection[str]) -> None:
    """Removes the takes of subjects, and the report, which shows them. ``lynx-render report`` writes it again."""
    if not subjects:
        return
    (output.folder / REPORT).unlink(missing_ok=True)
    remove_empty_folders(output.private / "logs")
    if output.takes.exists():
        with changing(output.takes) as takes:
            for key in [key for key in takes if key[0] in subjects]:
                del takes[key]
