"""What an output folder holds: sidecars (the truth), journal (the history), lock (one driver).

Order of publication: latents, mp4, sidecar. The sidecar's rename is what makes a shot done.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from lynx_parallel.artifacts import atomic_write, part_path, publish, sha256_file
from lynx_parallel.errors import ClusterError

SIDECAR_VERSION = 1
SUFFIXES = {"latents": ".latents.safetensors", "video": ".mp4", "sidecar": ".json"}
HEARTBEAT_S = 10.0
STALE_LOCK_S = 120.0


class Output:
    """One output folder.

    Attributes:
        folder: ``<output>``; ours is ``<output>/.lynx/``.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.private = folder / ".lynx"

    def path(self, name: str, kind: str) -> Path:
        """Where a shot's ``latents``, ``video`` or ``sidecar`` lies."""
        return self.folder / (name + SUFFIXES[kind])

    def logs(self, name: str, attempt: int) -> Path:
        """Folder of one attempt's rank logs."""
        return self.private / "logs" / name / str(attempt)

    def sidecar(self, name: str) -> dict[str, Any] | None:
        """A shot's sidecar, or None where there is none that can be read."""
        return _read_sidecar(self.path(name, "sidecar"))

    def intact(self, name: str, sidecar: Mapping[str, Any], kind: str, *, verify: bool = False) -> bool:
        """Whether an output is the file its sidecar speaks of.

        Its size must agree; its content is read where the mtime differs, or with ``verify``.
        """
        record = sidecar.get("outputs", {}).get(kind)
        path = self.path(name, kind)
        try:
            status = path.stat()
        except OSError:
            return False
        if not isinstance(record, dict) or status.st_size != record.get("size"):
            return False
        if not verify and status.st_mtime_ns == record.get("mtime_ns"):
            return True
        return sha256_file(path) == record.get("sha256")

    def sidecars(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every (name, sidecar) below the folder, sorted by name."""
        for path in sorted(self.folder.rglob("*.json")):
            if self.private in path.parents:
                continue
            if (sidecar := _read_sidecar(path)) is not None:
                yield str(path.relative_to(self.folder).with_suffix("")), sidecar

    def sweep(self) -> int:
        """Removes what a killed run left half-written; returns how many files."""
        parts = [path for path in self.folder.rglob("*.part") if path.is_file()]
        for path in parts:
            path.unlink(missing_ok=True)
        return len(parts)

    def supersede(self, name: str, kinds: tuple[str, ...]) -> None:
        """Moves a shot's old files aside, to ``.lynx/superseded/<old video digest, 8 digits>/``."""
        old = self.sidecar(name)
        digest8 = str((old or {}).get("digests", {}).get("video", "unknown"))[:8]
        for kind in kinds:
            source = self.path(name, kind)
            if not source.exists():
                continue
            target = self.private / "superseded" / digest8 / (name + SUFFIXES[kind])
            target.parent.mkdir(parents=True, exist_ok=True)
            if kind == "sidecar" and "latents" not in kinds:
                # The latents stay in use; the superseded video keeps a copy of what it was.
                target.write_bytes(source.read_bytes())
                continue
            os.replace(source, target)

    def commit(self, name: str, kinds: tuple[str, ...], sidecar: dict[str, Any]) -> None:
        """Publishes a shot's finished ``.part`` files and then its sidecar.

        Args:
            kinds: outputs that were written anew; any the sidecar's ``outputs`` names besides stay.
        """
        for kind in ("latents", "video"):
            path = self.path(name, kind)
            if kind in kinds:
                publish(part_path(path), path)
            if kind in sidecar["outputs"]:
                sidecar["outputs"][kind]["mtime_ns"] = path.stat().st_mtime_ns
        with atomic_write(self.path(name, "sidecar")) as part:
            part.write_text(json.dumps({"version": SIDECAR_VERSION, **sidecar}, indent=2, ensure_ascii=False) + "\n")

    def snapshot(self, manifest: Path, stamp: str) -> None:
        """Keeps a copy of the manifest of this run."""
        target = self.private / "manifests" / f"{stamp}.yaml"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(manifest.read_bytes())


class Journal:
    """Append-only history, one JSON object a line; the driver alone writes it."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        if self._file.tell() and not _ends_with_newline(path):
            self._file.write(b"\n")  # a torn last line of a killed driver

    def append(self, event: str, **record: Any) -> None:
        line = json.dumps({"time": now(), "event": event, **record}, ensure_ascii=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class Lock:
    """One driver per output folder: an O_EXCL file with host and pid, its mtime a heartbeat.

    Works on network file systems, where flock does not. A lock is stale when its pid is dead on this
    host, or when its heartbeat stopped ``STALE_LOCK_S`` ago.

    Raises:
        ClusterError: another driver holds the folder.
    """

    def __init__(self, path: Path):
        self.path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "time": now()}
        for _ in range(2):
            try:
                descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                self._remove_if_stale()
                continue
            with os.fdopen(descriptor, "w") as file:
                json.dump(mine, file)
            self._thread.start()
            return self
        raise ClusterError(f"{self.path}: another driver has just taken this output folder")

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def _remove_if_stale(self) -> None:
        try:
            age = time.time() - self.path.stat().st_mtime
            text = self.path.read_text()
        except FileNotFoundError:
            return
        try:
            holder = json.loads(text)
            host, pid, started = holder["host"], int(holder["pid"]), holder["started"]
        except (ValueError, KeyError, TypeError):
            host, pid, started = "an unknown host", 0, None
        here = host == socket.gethostname()
        if (here and _started(pid) != started) or age > STALE_LOCK_S:
            self.path.unlink(missing_ok=True)
            return
        raise ClusterError(
            f"{self.path.parent.parent}: another driver is at work here: process {pid} on {host}; "
            f"if it is gone for good, remove {self.path}"
        )


def now() -> str:
    """UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _read_sidecar(path: Path) -> dict[str, Any] | None:
    try:
        sidecar = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    ours = isinstance(sidecar, dict) and sidecar.get("version") == SIDECAR_VERSION and "digests" in sidecar
    return sidecar if ours else None


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _started(pid: int) -> str | None:
    """Start time of a process on this host in clock ticks since boot; None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]
