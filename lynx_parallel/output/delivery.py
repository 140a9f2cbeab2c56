"""Copies finished videos to a folder for delivery, and lists them in ``videos.csv`` and ``videos.json`` there.

Nothing that is there already is replaced, except these two lists. Imports neither torch nor Ray.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lynx_parallel.output.atomic import atomic_write, naming
from lynx_parallel.output.checksums import sha256_file
from lynx_parallel.output.made_files import one_at_a_time
from lynx_parallel.output.sidecar import encode_text

LIST_VERSION = 1
LISTS = ("videos.csv", "videos.json")
_COLUMNS = (
    "file", "sha256", "bytes", "name", "subject", "prompt", "prompt_text", "variant", "take", "seed", "finished",
    "latents_digest", "video_digest",
)  # fmt: skip
"""First columns of ``videos.csv``. Those of the settings follow."""
_IN_TABLE = ("sampling.", "video.")
"""Beginnings of the settings that have a column."""
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""Error numbers of ``link`` where the source is on another file system, or where a file system has no hard links."""
_CHUNK = 2**20


@dataclass(frozen=True)
class Video:
    """A finished video and its place in the delivery.

    Attributes:
        source: the file in the output folder.
        file: name in the delivery, relative to its folder.
        size, sha256: by its sidecar.
        facts: for the lists: what ``_COLUMNS`` names, and ``settings``.
    """

    source: Path
    file: str
    size: int
    sha256: str
    facts: Mapping[str, Any]

    @property
    def row(self) -> dict[str, Any]:
        """What the lists say of it."""
        return {"file": self.file, "sha256": self.sha256, "bytes": self.size, **self.facts}


class Delivery:
    """A folder for delivery.

    Attributes:
        link: make hard links. It becomes False where the file system has none: files are copied then.
        no_links: why there are none; empty if there are, or if none were asked for.
    """

    def __init__(self, folder: Path, *, link: bool = False):
        self.folder = folder
        self.no_links = ""
        self.link = link

    @contextlib.contextmanager
    def working(self, videos: Iterable[Video]) -> Iterator[None]:
        """Lets one process at a time deliver here, and removes what a killed one left half-copied.

        Raises:
            ClusterError: another process is at work here.
            OSError: the folder cannot be made.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(self.folder):
            self._sweep({*LISTS, *(video.file for video in videos)})
            yield

    def _sweep(self, files: Iterable[str]) -> None:
        by_folder: dict[Path, set[str]] = {}
        for path in (self.folder / file for file in files):
            by_folder.setdefault(path.parent, set()).add(path.name)
        for folder, names in by_folder.items():
            with contextlib.suppress(OSError):
                for path in list(folder.iterdir()):
                    if re.sub(r"\.[0-9]+\.part$", "", path.name) in names and path.name not in names:
                        path.unlink()

    def compare(self, videos: Sequence[Video]) -> tuple[set[str], dict[Path, str]]:
        """Returns the files that are there with the content of their video, and all conflicts: reasons by path."""
        present, conflicts = set(), dict[Path, str]()
        listed = {row["file"]: row for row in self._listed()}
        for video in videos:
            path = self.folder / video.file
            if blocked := _file_in_the_way(path, self.folder):
                conflicts[blocked] = "exists and is not a folder"
            elif not os.path.lexists(path):
                continue
            elif not path.is_file():
                conflicts[path] = "exists and is not a file"
            elif path.stat().st_size == video.size and sha256_file(path) == video.sha256:
                present.add(video.file)
            elif video.file in listed:
                seed = listed[video.file].get("seed")
                conflicts[path] = f"is of an earlier export (seed {seed}) and differs now; remove it to get the new one"
            else:
                conflicts[path] = "exists with other content; remove it, or choose another name or folder"
        conflicts |= {self.folder / name: "exists and is not ours" for name in LISTS if not self._may_write(name)}
        return present, conflicts

    def add(self, video: Video) -> str:
        """Copies or links a video. Its content is compared with its sha256 meanwhile.

        Returns:
            Why it cannot be delivered; empty if it was. Nothing is left of it then.

        Raises:
            OSError: the delivery's folder cannot be written.
        """
        path = self.folder / video.file
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with video.source.open("rb") as source, atomic_write(path) as part:
                linked = self.link and self._linked(video.source, part)
                with naming(path), open(os.devnull if linked else part, "wb") as copy:
                    if _copy(source, copy, video.source) != video.sha256:
                        raise _Damaged
        except _Damaged:
            return "damaged: its content differs from the sidecar's checksum"
        except OSError as error:
            if error.filename != str(video.source):
                raise
            return f"its video cannot be read: {error.strerror}"
        return ""

    def _linked(self, source: Path, part: Path) -> bool:
        try:
            os.link(os.path.realpath(source), part)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self.link, self.no_links = False, error.strerror or str(error)
        return self.link

    def write_lists(self, videos: Iterable[Video]) -> None:
        """Writes both lists: these videos, and those that the list has from earlier exports and that still exist."""
        rows = {row["file"]: row for row in self._listed() if (self.folder / row["file"]).is_file()}
        rows |= {video.file: video.row for video in videos}
        found = [rows[file] for file in sorted(rows)]
        content = {"version": LIST_VERSION, "made_by": "lynx-render export", "videos": found}
        texts = _table(found), json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        for name, text in zip(LISTS, texts, strict=True):
            path, data = self.folder / name, encode_text(text)
            if not path.exists() or path.read_bytes() != data:
                with atomic_write(path) as part:
                    part.write_bytes(data)

    def _listed(self) -> list[dict[str, Any]]:
        """Returns the rows of ``videos.json``; none if it is not one of ours."""
        try:
            found = json.loads((self.folder / LISTS[1]).read_bytes())
            if found["version"] != LIST_VERSION or found["made_by"] != "lynx-render export":
                return []
            return [
                row for row in found["videos"] if isinstance(row["file"], str) and isinstance(row["settings"], dict)
            ]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return []

    def _may_write(self, name: str) -> bool:
        """Returns whether a list does not exist yet, or begins as ours do."""
        path = self.folder / name
        if not os.path.lexists(path):
            return True
        first = ",".join(_COLUMNS).encode()
        begins = first if name == LISTS[0] else b'{\n "version": %d,\n "made_by": "lynx-render export"' % LIST_VERSION
        try:
            with path.open("rb") as file:
                return file.read(len(begins)) == begins
        except OSError:
            return False


class _Damaged(Exception):
    """A video with other content than its sidecar says."""


def _copy(source: BinaryIO, copy: BinaryIO, name: Path) -> str:
    """Copies a file. Returns the sha256 of what was copied.

    Args:
        name: of the source, for errors.
    """
    checksum = hashlib.sha256()
    while True:
        with naming(name):
            chunk = source.read(_CHUNK)
        if not chunk:
            return checksum.hexdigest()
        checksum.update(chunk)
        copy.write(chunk)


def _file_in_the_way(path: Path, folder: Path) -> Path | None:
    """Returns what stands where a folder above ``path``, below ``folder``, is needed; None if nothing does."""
    above = [one for one in path.parents if one.is_relative_to(folder)]
    return next((one for one in reversed(above) if os.path.lexists(one) and not one.is_dir()), None)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows as CSV, with a column for each setting of sampling and video."""
    names = dict.fromkeys(
        name for row in rows for name in row["settings"] if name.startswith(_IN_TABLE) and name != "sampling.seed"
    )
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*_COLUMNS, *names])
    for row in rows:
        values = [*(row.get(name) for name in _COLUMNS), *(row["settings"].get(name) for name in names)]
        table.writerow([value if isinstance(value, str | int | float) else _cell(value) for value in values])
    return text.getvalue()


def _cell(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)
