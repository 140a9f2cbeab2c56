"""One driver per output folder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from lynx_parallel.errors import ClusterError, FolderInUse

HEARTBEAT_S = 10.0
STALE_LOCK_S = 120.0


class Lock:
    """One driver per output folder: an O_EXCL file with host and pid, its mtime a heartbeat.

    Works on network file systems, where flock does not. A lock is stale when its process is dead, if that
    can be seen from here; else when its heartbeat stopped ``STALE_LOCK_S`` ago by the file system's clock.

    A driver that was frozen for longer, and finds its lock taken or gone, gets a SIGTERM.

    Args:
        facts: what the file also says of this driver.
        folder: the output folder, for messages; by default two levels above.

    Raises:
        FolderInUse: another driver holds the folder; at the end: this one lost its lock meanwhile.
        ClusterError: the folder cannot be written.
    """

    def __init__(self, path: Path, facts: Mapping[str, str] = {}, folder: Path | None = None):
        self.path = path
        self._folder = folder or path.parent.parent
        self._facts = facts
        self._file = -1
        self._mine = b""
        self._lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def refuse(self) -> None:
        """Raises FolderInUse if another driver holds the folder now. Takes nothing, and leaves no trace."""
        with contextlib.suppress(OSError):
            if self.path.exists():
                self._remove_if_stale()

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(3):
                if self._take():
                    self._thread.start()
                    return self
                self._remove_if_stale()
        except OSError as error:
            raise ClusterError(f"{self.path}: {error.strerror or error}") from None
        raise FolderInUse(f"{self.path}: another driver has just taken this output folder")

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._lost:
            os.close(self._file)
            raise FolderInUse(f"{self.path}: removed, or taken by another driver while this one was not heard of")
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._file), self.path.stat()):  # not one that another driver took over
                self.path.unlink()
        os.close(self._file)

    def _take(self) -> bool:
        try:
            self._file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        pid = os.getpid()
        mine = {
            "host": socket.gethostname(),
            "namespace": _namespace(),
            "pid": pid,
            "started": _started(pid),
            **self._facts,
        }
        self._mine = json.dumps(mine).encode()
        try:
            os.write(self._file, self._mine)
        except OSError:
            os.close(self._file)
            self.path.unlink()
            raise
        return True

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):
                if self._taken():
                    self._lost = True
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                os.utime(self.path)

    def _taken(self) -> bool:
        """Returns whether another driver has removed this lock. That driver may have ended and removed its own."""
        try:
            return self.path.read_bytes() != self._mine
        except FileNotFoundError:
            return True

    def _remove_if_stale(self) -> None:
        try:
            with self.path.open("rb") as file:
                seen, text = os.fstat(file.fileno()), file.read(2**16)
        except FileNotFoundError:
            return
        who, dead = _holder(text)
        if dead is None:
            dead = _clock(self.path.parent) - seen.st_mtime > STALE_LOCK_S
        if not dead:
            raise FolderInUse(
                f"{self._folder}: another driver is at work here: {who}; if it is gone for good, remove {self.path}"
            )
        self._remove(seen)

    def _remove(self, seen: os.stat_result) -> None:
        """Removes this very lock. Of all who find it stale, the one that makes the marker may.

        Otherwise the slower of two would remove the lock that the faster has made by then.
        """
        marker = self.path.with_name(f"{self.path.name}.{seen.st_ino}-{seen.st_mtime_ns}")
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                if _clock(marker.parent) - marker.stat().st_mtime > STALE_LOCK_S:  # killed while at it
                    marker.unlink()
            return
        try:
            with contextlib.suppress(FileNotFoundError):
                now_there = self.path.stat()
                if os.path.samestat(now_there, seen) and now_there.st_mtime_ns == seen.st_mtime_ns:
                    self.path.unlink()
        finally:
            marker.unlink(missing_ok=True)


def holder(path: Path) -> tuple[str, bool] | None:
    """Returns who holds a lock, in words, and whether that driver is alive; None if nobody does.

    Reads only. On another machine, a driver counts as alive until its heartbeat has stopped for ``STALE_LOCK_S``.
    """
    try:
        with path.open("rb") as file:
            seen, text = os.fstat(file.fileno()), file.read(2**16)
    except OSError:
        return None
    who, dead = _holder(text)
    if dead is None:
        try:
            at = _clock(path.parent)
        except OSError:  # a folder that this user can only read
            at = time.time()
        dead = at - seen.st_mtime > STALE_LOCK_S
    return who, not dead


def _holder(text: bytes) -> tuple[str, bool | None]:
    """Returns who holds a lock, in words, and whether that process is dead; None if it runs on another machine."""
    try:
        holder = json.loads(text)
        host, pid, started = holder["host"], int(holder["pid"]), holder["started"]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return "an unknown process", None
    who = f"process {pid} on {host}"
    # Containers may share a host's name, not its processes.
    here = host == socket.gethostname() and holder.get("namespace") == _namespace()
    return who, _started(pid) != started if here else None


def _namespace() -> str | None:
    """Returns the process namespace. Equal process numbers mean the same process only within one namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()  # hosts may share a name, too
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _clock(folder: Path) -> float:
    """Returns the time of the file system, which may be another machine's."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


def _started(pid: int) -> str | None:
    """Returns the start time of a living process of this host in clock ticks since boot, or None."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = status.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]  # killed, but not yet reaped
