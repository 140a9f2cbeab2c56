"""Ends what is left of a local Ray when its driver is gone, however it went: ``python -m lynx_parallel.gang.reaper``.

A killed driver can end nothing itself: a stopped rank, Ray's agents and its session folder would outlive it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

ROUNDS = 5
"""Ray may start a process while others are being ended."""


@contextlib.contextmanager
def reaped(folder: Path) -> Iterator[None]:
    """After the block, or this process's death in it, no process of the Ray in this folder is left, nor the folder."""
    reaper = subprocess.Popen(
        [sys.executable, "-m", "lynx_parallel.gang.reaper", str(folder)],
        stdin=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        yield
    finally:
        reaper.communicate()  # closes its standard input, as our death would


def reap(folder: Path) -> None:
    """Kills every process of the Ray whose session lies in ``folder``, and removes that.

    Which they are is told by their open files, all of them log there; most have changed the arguments they show.
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
        psutil.wait_procs(found, timeout=3)
    shutil.rmtree(folder, ignore_errors=True)


def _belongs(process: psutil.Process, folder: Path) -> bool:
    try:
        names = [*process.cmdline(), *(file.path for file in process.open_files())]
    except (psutil.Error, OSError):  # gone, or somebody else's
        return False
    ours = os.getpid(), os.getppid()  # the driver, where it lives to see this, has a log there, too
    return process.pid not in ours and any(str(folder) in name for name in names)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # whoever ends the driver's whole group: this is for afterwards
    sys.stdin.read()
    reap(Path(sys.argv[1]))
