"""Starts the doctor's child processes, which use torch. Reports a crash or a hang of one as a failed check.

Does not import torch itself.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lynx_parallel.failures import remedy_for
from lynx_parallel.rank.messages import Check

TIMEOUT_S = 120.0
"""Seconds after which a child process counts as hung. The first import of torch from a slow disk may take most."""


@dataclass
class Answer:
    """What a child process reported.

    Attributes:
        results: by kind, in the order of arrival.
        failure: how the process failed; None if it ended normally.
    """

    results: dict[str, list[Any]] = field(default_factory=dict)
    failure: Check | None = None

    def checks(self) -> list[Check]:
        """Returns the reported checks. A failure of the process comes last, as one more check."""
        checks = [Check(**result) for result in self.results.get("check", [])]
        return [*checks, self.failure] if self.failure else checks


def ask(report: str, device: str, *arguments: str, timeout: float = TIMEOUT_S) -> Answer:
    """Runs ``lynx_parallel.doctor.device`` with these arguments and returns what it reported."""
    # faulthandler names the module in which a process crashes.
    command = [sys.executable, "-X", "faulthandler", "-m", "lynx_parallel.doctor.device", report, device, *arguments]
    environment = dict(os.environ)
    if not device.startswith("cuda"):
        environment["CUDA_VISIBLE_DEVICES"] = ""
    began = time.monotonic()
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
        try:
            status: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            process.kill()
            process.wait()
        stdout.seek(0)
        stderr.seek(0)
        said = stderr.read().decode(errors="replace")
        answer = Answer(_results(stdout.read().decode(errors="replace")))
    if status != 0:
        doing = answer.results.get("doing", ["start Python"])[-1]
        answer.failure = _failure(status, doing, said, time.monotonic() - began)
    return answer


def ask_together(questions: Sequence[tuple[str, str, *tuple[str, ...]]], timeout: float = TIMEOUT_S) -> list[Answer]:
    """Returns the answers of several child processes that run side by side."""
    if not questions:
        return []
    with ThreadPoolExecutor(len(questions)) as pool:
        return list(pool.map(lambda question: ask(*question, timeout=timeout), questions))


def ask_links(devices: Sequence[str], timeout: float = TIMEOUT_S) -> list[Answer]:
    """Returns the answers of one process per device. All of them join one process group."""
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        size = str(len(devices))
        return ask_together([("link", name, str(rank), size, store) for rank, name in enumerate(devices)], timeout)


def _results(lines: str) -> dict[str, list[Any]]:
    results: dict[str, list[Any]] = {}
    for line in lines.splitlines():
        try:
            result = json.loads(line)
        except ValueError:
            continue  # cut off by the end of the process
        for kind, value in result.items():
            results.setdefault(kind, []).append(value)
    return results


def _failure(status: int | None, doing: str, stderr: str, seconds: float) -> Check:
    where = re.search(r'File "([^"]+)", line \d+ in \S+', stderr)  # faulthandler prints the innermost call first
    at = f", in {where[1]}" if where else ""
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "no message")
    if status is None:
        detail, remedy = f"no answer after {seconds:.0f} s", "Look for a hanging driver or disk (dmesg, nvidia-smi)."
    elif status == -signal.SIGKILL:
        detail = "killed"
        remedy = "The system may have run out of memory (dmesg). End other processes and run again."
    elif status < 0:
        detail = f"crashed by signal {_signal_name(-status)}{at}"
        remedy = "Reinstall the package that crashes, in a build for this torch, this driver and this CPU."
    else:
        detail, remedy = last, remedy_for(stderr, host="")
        if "lynx-render doctor" in remedy:
            remedy = "Reinstall lynx-parallel and its packages."
    return Check(f"process ({doing})", False, seconds, detail, remedy)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
