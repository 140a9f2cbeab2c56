"""Runs lynx-render without Ray: the driver and its ranks are forks of a server that has imported everything.

Importing the rank's code takes 7 s of a core, and so does starting Ray. Tests of what a run makes use this module.
The driver, the supervisor, the ranks and all files are the real ones. Tests of Ray, of start-up and of processes that
die use ``command`` or ``ray_head``.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import cloudpickle

from lynx_parallel.errors import RenderError
from tests.helpers.command import PATIENCE_S, environment
from tests.helpers.fork_server import Fork
from tests.helpers.small_convolutions import use_torch

OWN_BITS = {"LYNX_TEST_OWN_BITS": "1"}
"""Variable of a run with the bits of ranks on Ray. Other forks use ``small_convolutions``."""
RANKS = 8
"""Ranks for which the machine has room, as a Ray of two CPUs."""


class Driver:
    """A driver at work.

    Args:
        variables: of the environment, beside those of this process.
        streams: the two files to which it adds what it prints to stdout and stderr.
    """

    def __init__(self, arguments: Sequence[str | Path], cwd: Path, variables: Mapping[str, str], streams: list[Path]):
        self._streams = streams
        words = ["lynx-render", *map(str, arguments)]
        with open(os.devnull) as nothing, streams[0].open("ab") as printed, streams[1].open("ab") as errors:
            files = [file.fileno() for file in (nothing, printed, errors)]
            self._process = Fork("heavy", (_drive, (words,)), cwd, environment() | variables, files)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, negative if a signal ended it; None while it runs."""
        return self._process.wait(0)

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, within: float = PATIENCE_S) -> int:
        """Waits until it ends. Returns its exit code."""
        code = self._process.wait(within)
        assert code is not None, f"not done after {within} s"
        return code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kills it, and with it its ranks."""
        self._process.kill()

    def ended(self) -> subprocess.CompletedProcess[str]:
        """Waits until it ends. Returns its exit code and what it has printed."""
        return subprocess.CompletedProcess([], self.wait(), *(path.read_text() for path in self._streams))


def start(arguments: Sequence[str], cwd: Path, variables: Mapping[str, str], log: Path) -> Driver:
    """Runs ``lynx-render ARGUMENTS``, as ``chaos.storm.start_process``."""
    return Driver(arguments, cwd, variables, [log, log])


@contextlib.contextmanager
def started(*arguments: str | Path, cwd: Path, **variables: str) -> Iterator[Driver]:
    """Runs ``lynx-render ARGUMENTS``. It does not outlive the block."""
    with tempfile.TemporaryDirectory() as folder:
        driver = Driver(arguments, cwd, variables, [Path(folder, name) for name in ("stdout", "stderr")])
        try:
            yield driver
        finally:
            driver.kill()


def render(*arguments: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs ``lynx-render ARGUMENTS`` to its end."""
    with started(*arguments, cwd=cwd, **variables) as driver:
        return driver.ended()


def _drive(words: list[str]) -> None:
    """The driver's process."""
    sys.argv = words
    if OWN_BITS.keys() <= os.environ.keys():
        use_torch()
    _replace_ray()
    from lynx_parallel.cli.start import main

    main()


def _replace_ray() -> None:
    """Replaces what the engine uses of Ray: the cluster, its metrics, its actors and their placement."""
    from lynx_parallel.engine import cluster, gang, gang_start, metrics, placement

    @contextlib.contextmanager
    def ray_cluster(*_: Any) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(local=True, watch=asyncio.Event().wait)

    async def place(size: int, options: placement.StartOptions) -> placement.Placement:
        if size > RANKS:
            raise placement.NoRoom(f"no room for {size} ranks")
        return placement.Placement(None, [size * options.gangs] * size)  # type: ignore[arg-type]

    def available(asked: str) -> tuple[str, tuple[placement.Machine, ...]]:
        return "cpu", (placement.Machine("this machine", "127.0.0.1", RANKS),)

    class NoMetrics:
        def __init__(self, output: str):
            self.watch = self.event = lambda _: None

    replacements: dict[Any, dict[str, Any]] = {
        cluster: {"ray_cluster": ray_cluster},
        metrics: {"RayMetrics": NoMetrics},
        placement: {"available": available},
        gang_start: {"place": place, "ray": SimpleNamespace(remote=lambda **_: lambda actor: _ForkedRank)},
        gang: {"ray": SimpleNamespace(kill=lambda rank, **_: rank.kill()), "remove_placement_group": lambda _: None},
    }
    for module, names in replacements.items():
        for name, value in names.items():
            assert hasattr(module, name)
            setattr(module, name, value)


class _ForkedRank:
    """The handle of a rank's process, as Ray's of an actor: ``rank.METHOD.remote(...)`` returns an awaitable."""

    def __init__(self, variables: Mapping[str, str], arguments: tuple[Any, ...]):
        self._loop = asyncio.get_running_loop()
        self._calls: list[asyncio.Future[Any]] = []
        self._pipe, there = mp.Pipe()
        self._process = mp.get_context("fork").Process(target=_serve, args=(there, variables, arguments), daemon=True)
        self._process.start()
        there.close()
        threading.Thread(target=self._read, daemon=True).start()

    @classmethod
    def options(cls, *, runtime_env: dict[str, dict[str, str]], **_: Any) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *arguments: cls(runtime_env["env_vars"], arguments))

    def __getattr__(self, method: str) -> SimpleNamespace:
        return SimpleNamespace(remote=partial(self._call, method))

    def _call(self, method: str, *arguments: Any) -> asyncio.Future[Any]:
        call = self._loop.create_future()
        self._calls.append(call)
        with contextlib.suppress(OSError):  # a dead rank: the reading thread fails the call
            self._pipe.send_bytes(cloudpickle.dumps((len(self._calls) - 1, method, arguments)))
        return call

    def _read(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                number, result, error = cloudpickle.loads(self._pipe.recv_bytes())
                self._loop.call_soon_threadsafe(self._settle, self._calls[number], result, error)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._fail)

    @staticmethod
    def _settle(call: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        if call.done():
            return
        if error is None:
            call.set_result(result)
        else:
            call.set_exception(error)
            call.exception()  # read: nobody may await it

    def _fail(self) -> None:
        for call in self._calls:
            self._settle(call, None, RenderError("the rank's process ended", "died"))

    def kill(self) -> None:
        self._process.kill()


def _serve(pipe: Connection, variables: Mapping[str, str], arguments: tuple[Any, ...]) -> None:
    """The rank's process. The methods of a concurrency group run one after another, as in Ray."""
    import ray

    from lynx_parallel.rank.actor import RankActor

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no rank outlives its driver
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.update(variables)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", 1, closefd=False) for n in (1, 2))  # the driver's are its own
    ray.util.get_node_ip_address = lambda: "127.0.0.1"
    groups = {name: ThreadPoolExecutor(1) for name in ("", "ctl", "finish", "ahead")}
    actor = groups[""].submit(RankActor, *arguments)
    writing = threading.Lock()
    ray._raylet.setproctitle("ray::RankActor")

    def answer(number: int, group: str, method: str, given: tuple[Any, ...]) -> None:
        if not group:
            ray._raylet.setproctitle(f"ray::RankActor.{method}")
        result, error = None, None
        try:
            result = getattr(actor.result(), method)(*given)
        except BaseException as raised:
            error = raised
        try:
            with writing:
                pipe.send_bytes(cloudpickle.dumps((number, result, error)))
        except BaseException:
            os._exit(1)  # no memory for the answer

    while True:
        number, method, given = cloudpickle.loads(pipe.recv_bytes())
        group = getattr(getattr(RankActor, method), "__ray_concurrency_group__", "")
        groups[group].submit(answer, number, group, method, given)


if __name__ == "__main__":  # in a process of ``fork_server.python``
    _drive(["lynx-render", *sys.argv[1:]])
