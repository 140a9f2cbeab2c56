"""Runs lynx-render as a user does, a process of its own in a folder of its own, and looks at what it does."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from safetensors.torch import load_file

COMMAND = [sys.executable, "-m", "lynx_parallel.cli"]
ONE_RANK = ("--ulysses", "1", "--max-gpus", "1")
PATIENCE_S = 600.0
"""What is waited for comes much sooner; a slow, busy machine is no failure."""


def environment() -> dict[str, str]:
    """A user's own, where no other test may be taken for the run's want of memory, and ranks are on the CPU."""
    alone = {"RAY_AUTH_MODE": "disabled", "RAY_memory_monitor_refresh_ms": "0", "CUDA_VISIBLE_DEVICES": ""}
    return os.environ | alone


def lynx_render(*arguments: str | Path, cwd: Path, timeout: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
    """Runs to the end; the result holds exit code, stdout and stderr."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


@contextlib.contextmanager
def started(*arguments: str | Path, cwd: Path, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A driver at work, its output in one pipe; whatever happens, it is gone afterwards, and all of its own with it."""
    driver = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd, env=env or environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield driver
    finally:
        driver.kill()
        driver.wait()
        assert driver.stdout is not None
        driver.stdout.close()


def wait_for(condition: Callable[[], object], what: str, every: float = 0.1, within: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {within} s"
        time.sleep(every)


def ranks_of(pid: int) -> list[psutil.Process]:
    """Rank processes below a driver, or a head, that have come to life."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            if "ray::Rank" in command_line(process):
                found.append(process)
    return found


def command_line(process: psutil.Process) -> str:
    """In one string; empty where the process is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


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
    """Steps that the only shot's resume state holds; 0 without one."""
    for path in (output / ".lynx" / "partial").glob("*.safetensors"):
        with contextlib.suppress(FileNotFoundError):
            return int(load_file(path)["counters"][0])
    return 0


def sidecars(output: Path) -> list[Path]:
    """Returns the sidecars of an output folder; run records and other files under ``.lynx`` are left out."""
    return [path for path in output.rglob("*.json") if ".lynx" not in path.relative_to(output).parts]
