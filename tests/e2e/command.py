"""Runs lynx-render as a user does, a process of its own in a folder of its own, and looks at what it does."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from safetensors.torch import load_file

COMMAND = [sys.executable, "-m", "lynx_parallel.cli"]


def environment() -> dict[str, str]:
    return {**os.environ, "RAY_AUTH_MODE": "disabled"}


def lynx_render(*arguments: str | Path, cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs to the end; the result holds exit code, stdout and stderr."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def wait_for(condition: Callable[[], object], seconds: float, what: str, every: float = 0.1) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(every)


def ranks_of(pid: int) -> list[psutil.Process]:
    """Rank processes below a driver, or a head, that have come to life."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "ray::Rank" in " ".join(process.cmdline()):
                    found.append(process)
    return found


def at_work(pid: int, rank: int) -> psutil.Process:
    """The process of a driver's only gang that makes a shot as this rank; its output goes to the shot's log."""
    [found] = [process for process in ranks_of(pid) if _output(process).name == f"rank{rank}.log"]
    return found


def _output(process: psutil.Process) -> Path:
    return Path(f"/proc/{process.pid}/fd/1").readlink()


def steps(output: Path, attempt: int, rank: int = 0) -> list[int]:
    """Steps that a rank made of the shot astronaut/beach."""
    log = output / ".lynx" / "logs" / "astronaut" / "beach-t01" / str(attempt) / f"rank{rank}.log"
    return [int(n) for n in re.findall(r" step (\d+)/", log.read_text())] if log.exists() else []


def saved_steps(output: Path) -> int:
    """Steps that the only shot's partial state holds; 0 where there is none."""
    for path in (output / ".lynx" / "partial").glob("*.safetensors"):
        return int(load_file(path)["counters"][0])
    return 0
