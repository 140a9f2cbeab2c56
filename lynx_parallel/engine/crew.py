"""Does tasks in child processes, one for each GPU at the same time. Imports neither torch nor Ray.

No child outlives the command: a signal ends them, and ``engine.watcher`` kills them if the command itself is killed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

from lynx_parallel.inputs.cards import local_gpus

_POLL_S = 0.1
"""Seconds between two looks for a signal, while the main thread waits for a result."""
GRACE_S = 5.0
"""Seconds that a child process has to end after SIGTERM, before it is killed."""
_T = TypeVar("_T")
_R = TypeVar("_R")


class Ended(Exception):
    """The crew was told to end. What a child process has made since may be half-done."""


def visible_gpus(given: Mapping[str, str] = os.environ) -> list[str]:
    """Returns the GPUs of this machine, or those of ``CUDA_VISIBLE_DEVICES``, as this variable names them."""
    asked = given.get("CUDA_VISIBLE_DEVICES")
    if asked is None:
        return [str(number) for number in range(len(local_gpus()))]
    names = (name.strip() for name in asked.split(","))
    return list(itertools.takewhile(lambda name: name not in ("", "-1", "NoDevFiles"), names))  # as CUDA reads it


def places(gpus: Sequence[str], jobs: int | None = None) -> list[str | None]:
    """Returns the GPU of each task that runs at the same time: one per GPU by default; None without a GPU.

    Args:
        jobs: number of tasks at the same time. More than GPUs share them.
    """
    count = jobs or max(len(gpus), 1)
    return [gpus[number % len(gpus)] if gpus else None for number in range(count)]


class Crew:
    """Threads that do tasks, and their child processes. Use it as a context manager, so that all of them end.

    Args:
        places: one for each task that runs at the same time, see ``places``.
    """

    def __init__(self, places: Sequence[str | None]):
        self._places = places
        self._lock = threading.Lock()
        self._ended = False
        self._children: set[subprocess.Popen[Any]] = set()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._watcher = subprocess.Popen(
            [sys.executable, "-m", "lynx_parallel.engine.watcher"],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._end()
        finally:
            assert self._watcher.stdin is not None
            with contextlib.suppress(OSError):  # it was killed
                self._watcher.stdin.close()
            self._watcher.wait()
        for thread in self._threads:
            thread.join()

    def work(self, tasks: Iterable[_T], do: Callable[[_T, str | None], _R]) -> Iterator[tuple[_T, _R]]:
        """Yields each task and its result, in the order in which they end.

        Args:
            do: does a task at a place, in a thread. An exception of it is raised here.
        """
        left = deque(tasks)
        results: queue.SimpleQueue[tuple[_T, _R | BaseException]] = queue.SimpleQueue()
        total = len(left)

        def run(place: str | None) -> None:
            while True:
                try:
                    task = left.popleft()
                except IndexError:
                    return
                try:
                    results.put((task, do(task, place)))
                except Ended:
                    return
                except BaseException as error:
                    results.put((task, error))

        for place in self._places[:total]:
            thread = threading.Thread(target=run, args=(place,), daemon=True)
            self._threads.append(thread)
            thread.start()
        ended = 0
        while ended < total:
            try:
                # Python handles a signal that comes just before an endless wait only after that wait.
                task, result = results.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            ended += 1
            if isinstance(result, BaseException):
                raise result
            yield task, result

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Starts a child process in a process group of its own. Options as of ``subprocess.Popen``.

        Raises:
            Ended: the crew was told to end.
        """
        with self._lock:
            if self._ended:
                raise Ended
            child = subprocess.Popen(command, start_new_session=True, **options)
            self._children.add(child)
            self._tell_watcher("+", child)
        return child

    def wait(self, child: subprocess.Popen[Any]) -> int:
        """Returns the exit status of a child process when it has ended: negative for a signal.

        Raises:
            Ended: the crew was told to end meanwhile. Such a child may exit with 0 and have made half a file.
        """
        status = child.wait()
        with self._lock:
            self._children.discard(child)
            self._tell_watcher("-", child)
            if self._ended:
                raise Ended
        return status

    def _tell_watcher(self, sign: str, child: subprocess.Popen[Any]) -> None:
        assert self._watcher.stdin is not None
        with contextlib.suppress(OSError):  # it was killed
            self._watcher.stdin.write(f"{sign}{child.pid}\n".encode())
            self._watcher.stdin.flush()

    def _end(self) -> None:
        """Ends all child processes with SIGTERM, and those that do not end in time with SIGKILL."""
        with self._lock:
            self._ended = True
            running = [child for child in self._children if child.poll() is None]
        try:
            _signal(running, signal.SIGTERM)
            deadline = time.monotonic() + GRACE_S
            with contextlib.suppress(subprocess.TimeoutExpired):
                for child in running:
                    child.wait(max(deadline - time.monotonic(), 0))
        finally:  # also after a second Ctrl-C; a child's own children may live on
            _signal(running, signal.SIGKILL)


def _signal(children: Iterable[subprocess.Popen[Any]], number: int) -> None:
    for child in children:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
