"""Runs lynx-render as a user does: a process of its own, in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-m", "lynx_parallel.cli"]


def environment() -> dict[str, str]:
    return {**os.environ, "RAY_AUTH_MODE": "disabled"}


def lynx_render(*arguments: str | Path, cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs to the end; the result holds exit code, stdout and stderr."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
