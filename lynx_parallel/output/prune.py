"""Finds and removes what an output folder no longer needs. Everything is below ``.lynx``; links are not followed.

Imports neither torch nor Ray.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from lynx_parallel.output.folder import Output
from lynx_parallel.output.modes import reason
from lynx_parallel.output.posters import POSTER_SUFFIX
from lynx_parallel.output.shot_states import last_results, shot_states
from lynx_parallel.output.sidecar import SUFFIXES

KINDS = {
    "superseded": "superseded files",
    "damaged": "damaged files",
    "states": "abandoned resume states",
    "logs": "logs of finished shots",
    "candidates": "candidates of finished shots",
}
"""Descriptions of what can be removed, by kind."""
_STATE = re.compile(r"([0-9a-f]{64})\.safetensors")


@dataclass(frozen=True)
class Entry:
    """Files that are removed together: a superseded shot, a damaged file, a resume state, or the logs of an attempt.

    Attributes:
        kind: one of ``KINDS``.
        files: in the order of their removal. A sidecar comes last, because it says whose the others are.
        size: in bytes.
        written: mtime of the newest file, in seconds since the epoch.
    """

    kind: str
    files: tuple[Path, ...]
    size: int
    written: float


def find_prunable(output: Output, states_in_use: Set[str] | None) -> list[Entry]:
    """Returns everything that the output folder no longer needs. Changes nothing.

    Args:
        states_in_use: latents digests of the resume states that the next run would use. None if they are not known:
            all resume states are kept.
    """
    private, found = output.private, dict[tuple[str, Path], list[Path]]()
    for path in _files(private / "superseded"):
        found.setdefault(("superseded", _without_suffix(path)), []).append(path)
    for path in _files(private / "damaged"):
        found["damaged", path] = [path]
    for digest, path in resume_states(output).items():
        if states_in_use is not None and digest not in states_in_use:
            found["states", path] = [path]
    logs = private / "logs"
    finished = _finished(output) if logs.is_dir() else set()
    for path in _files(logs):
        attempt = path.parent
        if attempt.name.isdecimal() and attempt.parent.relative_to(logs).as_posix() in finished:
            found.setdefault(("logs", attempt), []).append(path)
    candidates = private / "candidates"
    finished = finished or (_finished(output) if candidates.is_dir() else set())
    for path in _files(candidates):
        if path.parent.relative_to(candidates).as_posix() in finished:
            found.setdefault(("candidates", _without_suffix(path)), []).append(path)
    entries = (_entry(kind, files) for (kind, _), files in found.items())
    return [entry for entry in entries if entry is not None]


def resume_states(output: Output) -> dict[str, Path]:
    """Returns all resume states by their digest."""
    folder = output.private / "partial"
    matches = ((path, _STATE.fullmatch(path.name)) for path in _files(folder) if path.parent == folder)
    return {match[1]: path for path, match in matches if match}


def choose(entries: Iterable[Entry], *, before: float | None = None, keep: float | None = None) -> list[Entry]:
    """Returns the entries to remove, the newest first.

    Args:
        before: time in seconds since the epoch. Entries written later stay.
        keep: bytes. The newest entries stay as long as their total size is at most this.
    """
    chosen, total = list[Entry](), 0
    for entry in sorted(entries, key=lambda entry: (-entry.written, entry.files)):
        total += entry.size
        if (keep is None or total > keep) and (before is None or entry.written <= before):
            chosen.append(entry)
    return chosen


def prune(output: Output, entries: Iterable[Entry]) -> tuple[list[Entry], dict[Path, str]]:
    """Removes entries, and the folders that are empty then. The caller holds the lock of the output folder.

    Returns:
        The entries that are gone, and why a file could not be removed. Its entry's later files are kept, too.
    """
    removed, errors = list[Entry](), dict[Path, str]()
    for entry in entries:
        for path in entry.files:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                errors[path] = reason(error)
                break
        else:
            removed.append(entry)
    for kind in ("superseded", "damaged", "logs", "candidates"):
        remove_empty_folders(output.private / kind)
    return removed, errors


def remove_empty_folders(folder: Path) -> None:
    """Removes the empty folders below a folder."""
    if folder.is_symlink():
        return
    for path, _, _ in os.walk(folder, topdown=False):
        if Path(path) != folder:
            with contextlib.suppress(OSError):
                os.rmdir(path)


def _files(folder: Path) -> Iterator[Path]:
    """Yields every file and every link below a folder, in order. A folder that is a link is not entered."""
    if folder.is_symlink():
        return
    for path, folders, files in os.walk(folder):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(path, name))]
        yield from (Path(path, name) for name in sorted([*files, *links]))


def _entry(kind: str, files: list[Path]) -> Entry | None:
    """Returns an entry, or None if another process has removed its files by now."""
    found = {}
    for path in sorted(files, key=lambda path: (path.name.endswith(SUFFIXES["sidecar"]), path)):
        with contextlib.suppress(FileNotFoundError):
            found[path] = path.lstat()
    if not found:
        return None
    size, written = sum(one.st_size for one in found.values()), max(one.st_mtime for one in found.values())
    return Entry(kind, tuple(found), size, written)


def _without_suffix(path: Path) -> Path:
    """Returns the path of a shot's file without the suffix. Other paths are returned as they are."""
    for suffix in (*SUFFIXES.values(), POSTER_SUFFIX):
        if path.name.endswith(suffix):
            return path.with_name(path.name.removesuffix(suffix) or path.name)
    return path


def _finished(output: Output) -> set[str]:
    """Returns the names of the finished shots. A shot that was tried again since, without success, is left out."""
    last = last_results(output)
    done = (shot.name for shot in shot_states(output, read=False) if shot.state == "done")
    return {name for name in done if name not in last or last[name][0] == "done"}
