"""Starts the doctor's child processes, which use torch. Reports a crash or a hang of one as a failed check.

Does not import torch itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from lynx_parallel.failures import remedy_for
from lynx_parallel.rank.messages import Check

Heard = Callable[[str, Any], None]
"""Gets the kind and the value of a result."""
_POLL_S = 0.1
"""Seconds between two looks at what a child process has reported."""
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
    _read: int = 0

    def hear(self, stream: BinaryIO, heard: Heard) -> None:
        """Reads the lines that a process has written to a file since the last call."""
        number = stream.fileno()  # whose position the process shares
        new = os.pread(number, os.fstat(number).st_size - self._read, self._read)
        lines = new[: new.rfind(b"\n") + 1]
        self._read += len(lines)
        for kind, value in _results(lines.decode(errors="replace")):
            self.results.setdefault(kind, []).append(value)
            heard(kind, value)

    def checks(self) -> list[Check]:
        """Returns the reported checks. A failure of the process comes last, as one more check."""
        checks = [Check(**result) for result in self.results.get("check", [])]
        return [*checks, self.failure] if self.failure else checks


def ask(
    report: str,
    device: str,
    *arguments: str,
    timeout: float = TIMEOUT_S,
    heard: Heard = lambda kind, value: None,
    stop: threading.Event | None = None,
) -> Answer:
    """Runs ``lynx_parallel.doctor.device`` with these arguments and returns what it reported.

    Args:
        heard: gets each result as soon as it is reported.
        stop: ends the process when it is set.
    """
    # faulthandler names the module in which a process crashes.
    command = [sys.executable, "-X", "faulthandler", "-m", "lynx_parallel.doctor.device", report, device, *arguments]
    environment = dict(os.environ)
    if not device.startswith("cuda"):
        environment["CUDA_VISIBLE_DEVICES"] = ""
    began = time.monotonic()
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
        answer, status = Answer(), None
        try:
            while status is None and time.monotonic() < began + timeout and not (stop and stop.is_set()):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = process.wait(_POLL_S)
                answer.hear(stdout, heard)
        finally:
            process.kill()
            process.wait()
        answer.hear(stdout, heard)
        stderr.seek(0)
        said = stderr.read().decode(errors="replace")
    if status != 0:
        doing = answer.results.get("doing", ["start Python"])[-1]
        answer.failure = _failure(status, doing, said, time.monotonic() - began)
    return answer


def ask_together(
    questions: Sequence[tuple[str, str, *tuple[str, ...]]],
    timeout: float = TIMEOUT_S,
    heard: Callable[[str, str, Any], None] = lambda device, kind, value: None,
) -> list[Answer]:
    """Returns the answers of several child processes that run side by side. Ctrl-C ends all of them.

    Args:
        heard: gets the device, the kind and the value of each result, one at a time.
    """
    if not questions:
        return []
    stop, lock = threading.Event(), threading.Lock()

    def one(question: tuple[str, str, *tuple[str, ...]]) -> Answer:
        def hear(kind: str, value: Any) -> None:
            with lock:
                heard(question[1], kind, value)

        return ask(*question, timeout=timeout, heard=hear, stop=stop)

    with ThreadPoolExecutor(len(questions)) as pool:
        try:
            futures = [pool.submit(one, question) for question in questions]
            answers = []
            for future in futures:
                # Python handles a signal that comes just before an endless wait only after that wait.
                while wait([future], _POLL_S).not_done:
                    pass
                answers.append(future.result())
            return answers
        except BaseException:
            stop.set()
            raise


def ask_links(
    devices: Sequence[str],
    timeout: float = TIMEOUT_S,
    heard: Callable[[str, str, Any], None] = lambda device, kind, value: None,
) -> list[Answer]:
    """Returns the answers of one process per device. All of them join one process group. See ``ask_together``."""
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        size = str(len(devices))
        questions = [("link", name, str(rank), size, store) for rank, name in enumerate(devices)]
        return ask_together(questions, timeout, heard)


def _results(lines: str) -> Iterator[tuple[str, Any]]:
    """Yields kind and value of each result."""
    for line in lines.splitlines():
        try:
            result = json.loads(line)
        except ValueError:
            continue  # of a library
        yield from result.items()


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
