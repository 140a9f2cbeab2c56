"""What an output folder no longer needs: superseded and damaged files, abandoned resume states, logs of finished shots.

Imports neither torch nor Ray.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lynx_parallel.output.folder import Output

Kind = Literal["superseded", "damaged", "state", "log"]
KINDS: dict[Kind, str] = {
    "superseded": "superseded files",
    "damaged": "damaged files",
    "state": "resume states that no run would use",
    "log": "logs of finished shots",
}
"""Kinds of what can be removed, in words."""


@dataclass(frozen=True)
class Prunable:
    """A file, or the folder of an attempt's logs.

    Attributes:
        size: in bytes, of all its files.
        changed: time of its last change, seconds since 1970.
    """

    kind: Kind
    path: Path
    size: int
    changed: float


def find_prunable(output: Output, states: Collection[Path], finished: Iterable[str]) -> list[Prunable]:
    """Returns everything that can be removed, the oldest first. Links are not followed.

    Args:
        states: resume states that no run would use.
        finished: names of finished shots, whose logs can be removed.
    """
    found = [_of("superseded", path) for path in _files(output.private / "superseded")]
    found += [_of("damaged", path) for path in _files(output.private / "damaged")]
    found += [_of("state", path) for path in states]
    for name in finished:
        folder = output.logs(name, 0).parent
        with contextlib.suppress(OSError):
            found += [_of("log", path) for path in folder.iterdir() if path.name.isdecimal() and _is_folder(path)]
    return sorted((one for one in found if one is not None), key=lambda one: (one.changed, one.path))


def choose(found: Iterable[Prunable], *, before: float | None = None, keep: int | None = None) -> list[Prunable]:
    """Returns what to remove, the oldest first.

    Args:
        before: only what was changed before this time; None for any time.
        keep: bytes of the newest that stay; None for none.
    """
    chosen, kept = [], 0
    for one in sorted(found, key=lambda one: one.changed, reverse=True):
        if before is not None and one.changed >= before:
            continue
        if keep is not None and kept + one.size <= keep:
            kept += one.size
            continue
        keep = None if keep is None else kept  # nothing older than what does not fit stays
        chosen.append(one)
    return chosen[::-1]


def remove(output: Output, chosen: Iterable[Prunable]) -> dict[Path, str]:
    """Removes files and folders, and the folders that are then empty. Needs the lock of the folder.

    Returns:
        Why a path could not be removed. What is gone already is no error.
    """
    left: dict[Path, str] = {}
    for one in chosen:
        try:
            if one.kind == "log":
                shutil.rmtree(one.path)
            else:
                one.path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            left[one.path] = error.strerror or str(error)
    for name in ("superseded", "damaged", "logs"):
        for folder, _, _ in os.walk(output.private / name, topdown=False):
            with contextlib.suppress(OSError):  # not empty
                os.rmdir(folder)
    return left


def _files(folder: Path) -> Iterator[Path]:
    for below, _, names in os.walk(folder):
        yield from (Path(below, name) for name in names)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _of(kind: Kind, path: Path) -> Prunable | None:
    """Returns a path with its size and time, or None if it is gone."""
    try:
        states = [os.lstat(path), *(os.lstat(file) for file in (_files(path) if kind == "log" else ()))]
    except OSError:
        return None
    files = states[1:] if kind == "log" else states
    return Prunable(kind, path, sum(one.st_size for one in files), max(one.st_mtime for one in states))
