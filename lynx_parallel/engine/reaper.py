"""Ends the processes of a local Ray after its driver has ended or died: ``python -m lynx_parallel.engine.reaper``.

A killed driver can end nothing itself: a stopped rank, Ray's agents and its session folder would outlive it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from lynx_parallel.engine.process import gave_up

ROUNDS = 5
"""Number of passes, because Ray may start a process while others are being ended."""
KILLED_WITHIN_S = 3.0
LOOK_EVERY_S = 0.02


@contextlib.contextmanager
def reaped(folder: Path) -> Iterator[None]:
    """Ends all processes of the Ray in this folder, and removes it, after the block or after this process has died.

    If a thread was given up in the block, it may start another process. Such a process ends soon after this one.
    """
    reaper = subprocess.Popen(
        [sys.executable, "-m", "lynx_parallel.engine.reaper", str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert reaper.stdin is not None
    assert reaper.stdout is not None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it was killed
            reaper.stdin.write(b"again" if gave_up() else b"")
            reaper.stdin.close()  # as our death would
        reaper.stdout.read()
        if not gave_up():
            reaper.wait()


def reap(folder: Path) -> None:
    """Kills every process of the Ray whose session lies in ``folder``, and removes that.

    They are recognised by their open log files. Most of them have changed the arguments that they show.
    """
    for _ in range(ROUNDS):
        found = [process for process in psutil.process_iter() if _belongs(process, folder)]
        if not found:
            break
        for process in list(found):
            with contextlib.suppress(psutil.Error):
                found += process.children(recursive=True)
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        deadline = time.monotonic() + KILLED_WITHIN_S
        while any(map(_lives, found)) and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY_S)
    shutil.rmtree(folder, ignore_errors=True)


def _lives(process: psutil.Process) -> bool:
    """Returns whether a process has not ended. A dead one stays listed until its parent collects it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _belongs(process: psutil.Process, folder: Path) -> bool:
    try:
        names = [*process.cmdline(), *(file.path for file in process.open_files())]
    except (psutil.Error, OSError):  # gone, or somebody else's
        return False
    ours = os.getpid(), os.getppid()  # a driver that still lives also has a log in this folder
    return process.pid not in ours and any(str(folder) in name for name in names)


def main(folder: Path) -> None:
    """Waits for the driver to end, or to close this process's standard input."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # a signal to the driver's process group must not end the reaper
    driver = os.getppid()
    again = sys.stdin.read()
    reap(folder)
    os.close(1)  # tells the driver
    if again:
        while os.getppid() == driver:
            time.sleep(LOOK_EVERY_S)
        reap(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
