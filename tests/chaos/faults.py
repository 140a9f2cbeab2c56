"""Real faults, made from outside: signals, resource limits, memory, a full disk. The product knows of none of them."""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.helpers.command import command_line, ranks_of

HOG = """
import contextlib, os, sys, time, psutil
limit, blocks = float(sys.argv[1]), []
with contextlib.suppress(OSError):
    os.nice(-20)  # on a busy machine, memory is slow to get
while True:
    memory = psutil.virtual_memory()
    if memory.total - memory.available < limit:  # others may give memory back meanwhile
        blocks.append(b"x" * 2**27)
    else:
        time.sleep(0.1)
"""
KILLED_WITHIN_S = 25.0
SPARE_BYTES = 7 * 2**29
"""Of memory for a campaign, after which Ray's monitor kills ranks: more than they need, less than the machine has."""


@dataclass
class Target:
    """What faults are made in.

    Attributes:
        driver: the living driver.
        output: its output folder.
        small_disk: whether ``output`` is a small disk of its own.
        memory: bytes in use on this machine at which its Ray kills a rank; none, and it does not watch closely.
    """

    driver: psutil.Process
    output: Path
    small_disk: bool
    memory: float | None
    random: random.Random

    def ranks(self) -> list[psutil.Process]:
        """Rank processes that have come to life."""
        return [rank for rank in ranks_of(self.driver.pid) if _status(rank) not in (None, psutil.STATUS_STOPPED)]

    def ripe(self, seconds: float) -> bool:
        """Whether there is something to be lost, or it is that long that there was not."""
        return any(map(_renders, self.ranks())) or (seconds > 60 and bool(self.ranks()))

    def rank(self) -> psutil.Process | None:
        found = self.ranks()
        ranks = list(filter(_renders, found)) or found
        return self.random.choice(ranks) if ranks else None


def kill(target: Target) -> bool:
    return _signal(target.rank(), signal.SIGKILL)


def stop(target: Target) -> bool:
    """A process that neither works nor dies."""
    return _signal(target.rank(), signal.SIGSTOP)


def no_more_files(target: Target) -> bool:
    """The next file a rank opens raises."""
    return _limit(target.rank(), resource.RLIMIT_NOFILE, lambda rank: 8)


def no_large_files(target: Target) -> bool:
    """The next file a rank writes, its log or its video, raises."""
    return _limit(target.rank(), resource.RLIMIT_FSIZE, lambda rank: 1)


def no_more_memory(target: Target) -> bool:
    """The next allocation of any size fails in a rank."""
    return _limit(target.rank(), resource.RLIMIT_AS, lambda rank: rank.memory_info().vms + 2**20)


def memory_monitor(target: Target) -> bool:
    """Another process takes so much that Ray's memory monitor kills a rank, on machines where it sees that."""
    if target.memory is None:
        return False
    ranks = target.ranks()
    with subprocess.Popen([sys.executable, "-c", HOG, str(target.memory + 2**28)]) as hog:
        deadline = time.monotonic() + KILLED_WITHIN_S
        while all(map(psutil.Process.is_running, ranks)) and time.monotonic() < deadline:
            time.sleep(0.1)
        hog.kill()
    return not all(map(psutil.Process.is_running, ranks))


def full_disk(target: Target) -> bool:
    """Not a byte is free for some seconds."""
    if not target.small_disk or not target.ranks():
        return False
    ballast = target.output / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"\0" * 2**16):
            pass
    time.sleep(target.random.uniform(1, 6))
    ballast.unlink()
    return True


def kill_driver(target: Target) -> bool:
    return _signal(target.driver, signal.SIGKILL)


MEMORY_MONITOR = "Ray's memory monitor"
FAULTS: dict[str, Callable[[Target], bool]] = {
    "kill -9 of a rank": kill,
    "SIGSTOP of a rank": stop,
    "exception: no more open files": no_more_files,
    "exception: no file may grow": no_large_files,
    "an allocation that fails": no_more_memory,
    MEMORY_MONITOR: memory_monitor,
    "a full disk": full_disk,
    "kill -9 of the driver": kill_driver,
}


def watch_memory() -> tuple[dict[str, str], float]:
    """Environment of a driver whose Ray watches the memory closely, and how many bytes of it may be in use.

    It sees everyone's memory: nothing else may be at work on the machine.
    """
    total = psutil.virtual_memory().total
    threshold = round(min(0.95, (_memory_used() + SPARE_BYTES) / total), 3)
    watch = {"RAY_memory_usage_threshold": str(threshold), "RAY_memory_monitor_refresh_ms": "100"}
    return watch, threshold * total


def _renders(rank: psutil.Process) -> bool:
    return ".render" in command_line(rank)


def _status(process: psutil.Process) -> str | None:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status()
    return None


def _memory_used() -> int:
    memory = psutil.virtual_memory()
    return memory.total - memory.available


def _signal(process: psutil.Process | None, number: signal.Signals) -> bool:
    try:
        if process is None:
            return False
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True


def _limit(process: psutil.Process | None, kind: int, limit: Callable[[psutil.Process], int]) -> bool:
    try:
        if process is None:
            return False
        _, hard = resource.prlimit(process.pid, kind)
        resource.prlimit(process.pid, kind, (limit(process), hard))
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False
    return True
