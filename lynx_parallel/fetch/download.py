"""Downloads files over HTTP: several at a time, resumed where they stopped, checked before they get their names."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from lynx_parallel.errors import DownloadError
from lynx_parallel.output.atomic import publish
from lynx_parallel.output.checksums import sha256_file
from lynx_parallel.plan.hashing import DigestCache
from lynx_parallel.text import shown_size
from lynx_parallel.view.transfer import Transfer

_log = logging.getLogger(__name__)

SIDE_BY_SIDE = 4
"""Files downloaded at the same time. One connection seldom uses the whole bandwidth."""
_SHA256_DIGITS = 64


@dataclass(frozen=True)
class Download:
    """A file to download.

    Attributes:
        path: where the file is stored.
        size: bytes, if known.
        digest: what the content must hash to, if known: a sha256, or git's object id.
        suffix: of the partial file, which lies beside ``path``.
    """

    url: str
    path: Path
    size: int | None = None
    digest: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    suffix: str = ".part"

    @property
    def part(self) -> Path:
        return self.path.with_name(self.path.name + self.suffix)

    @property
    def arrived(self) -> int:
        """Bytes that an interrupted download has left; 0 if it cannot be resumed."""
        have = self.part.stat().st_size if self.part.exists() else 0
        return 0 if self.size is not None and have > self.size else have

    def is_there(self, digest_cache: DigestCache) -> bool:
        """Returns whether ``path`` exists with the right size and content."""
        if not self.path.is_file() or self.size not in (None, self.path.stat().st_size):
            return False
        if self.digest is None:
            return True
        whole = len(self.digest) == _SHA256_DIGITS
        return self.digest == (digest_cache.sha256(self.path) if whole else _git_id(self.path))


def with_sizes(downloads: Sequence[Download]) -> list[Download]:
    """Returns the downloads with their sizes. Asks the servers for unknown sizes.

    Raises:
        HTTPError: a server cannot be reached or does not have the file.
    """
    from huggingface_hub.utils import get_session, hf_raise_for_status

    sized = []
    for download in downloads:
        if download.size is None:
            _log.debug("HEAD %s", download.url.partition("?")[0])
            response = get_session().head(download.url, follow_redirects=True, timeout=30)
            hf_raise_for_status(response)
            length = response.headers.get("Content-Length", "")
            download = replace(download, size=int(length) if length.isdecimal() else None)
        sized.append(download)
    return sized


def download_all(downloads: Sequence[Download], transfer: Transfer, digest_cache: DigestCache) -> None:
    """Downloads the files. Each one appears at its path only when it is complete.

    An interrupted call leaves partial files. The next call resumes from them.

    Raises:
        DownloadError: the content of a file is wrong.
        OSError, HTTPError: as huggingface_hub raises them.
    """
    pool = ThreadPoolExecutor(SIDE_BY_SIDE)
    try:
        futures = {pool.submit(_download, download, transfer): download for download in downloads}
        for future in as_completed(futures):
            digest_cache.add(futures[future].path, future.result())
    finally:
        transfer.stop()  # after an error or Ctrl-C, downloads still running end at their next chunk
        pool.shutdown(wait=False, cancel_futures=True)
        digest_cache.save()


def check_room(downloads: Sequence[Download]) -> None:
    """Checks that each disk has room for what is still to be downloaded.

    Raises:
        DownloadError: a disk has too little.
    """
    folders: dict[int, Path] = {}
    needed: dict[int, int] = {}
    for download in downloads:
        folder = next(parent for parent in download.path.parents if parent.exists())
        disk = folder.stat().st_dev
        folders.setdefault(disk, folder)
        needed[disk] = needed.get(disk, 0) + (download.size or 0) - download.arrived
    for disk, folder in folders.items():
        if (free := shutil.disk_usage(folder).free) < needed[disk]:
            raise DownloadError(
                f"{folder}: {shown_size(needed[disk])} are missing, but only {shown_size(free)} are free: free some "
                "room, or set HF_HOME (weights) or LYNX_CACHE to another disk"
            )


def _download(download: Download, transfer: Transfer) -> str:
    """Downloads one file, checks it, gives it its name and returns its sha256."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    download.part.parent.mkdir(parents=True, exist_ok=True)
    while True:
        arrived = download.arrived
        try:
            _receive(download, arrived, transfer)
            break
        except HTTPError as error:
            if isinstance(error, HfHubHTTPError) or download.arrived <= arrived:
                raise  # the server refused, or nothing more arrived
    sha256 = sha256_file(download.part)
    if download.digest is not None:
        found = sha256 if len(download.digest) == _SHA256_DIGITS else _git_id(download.part)
        if found != download.digest:
            download.part.unlink()
            raise DownloadError(
                f"{download.url}: wrong content: expected digest {download.digest}, found {found}: removed; run fetch "
                "again, and if that does not help, download the file by other means"
            )
    publish(download.part, download.path)
    return sha256


def _receive(download: Download, arrived: int, transfer: Transfer) -> None:
    """Downloads the rest of a file into its partial file."""
    from huggingface_hub.file_download import http_get

    headers = {**download.headers, "Accept-Encoding": "identity"}  # compressed content could not be resumed
    with download.part.open("ab" if arrived else "wb") as file:
        http_get(
            download.url, file, resume_size=arrived, headers=headers, expected_size=download.size,
            tqdm_class=_bar(transfer, arrived),
        )  # fmt: skip


def _bar(transfer: Transfer, arrived: int) -> Any:
    """Returns a progress bar class for ``http_get`` that reports the bytes to ``transfer``."""

    class Bar:
        def __init__(self, *, initial: int = 0, **_: Any):
            transfer.advance(initial - arrived)  # negative if the server restarts the file

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

        def update(self, n: int) -> None:
            transfer.advance(n)

    return Bar


def _git_id(path: Path) -> str:
    """Returns git's object id of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha1(b"blob %d\0" % path.stat().st_size)).hexdigest()
