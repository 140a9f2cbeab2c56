"""Kills child processes of a command that has died: ``python -m lynx_parallel.engine.watcher``.

Its standard input has a line ``+N`` for each process group that was started, and ``-N`` for each that has ended. When
the input ends, because the command has ended or was killed, the groups that are left are killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys


def main() -> None:
    """Reads lines until the command ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        if line.endswith("\n"):  # else it is the torn line of a killed command
            (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
