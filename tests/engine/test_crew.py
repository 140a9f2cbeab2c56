"""Tasks in child processes: order, GPUs, and that no child outlives them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from lynx_parallel.engine import crew as module
from lynx_parallel.engine.crew import Crew, Ended, places, visible_gpus
from tests.helpers.command import wait_for

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
STUBBORN = [
    sys.executable, "-c",
    "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "pathlib.Path(sys.argv[1]).touch(); time.sleep(600)",
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [("2,3", ["2", "3"]), (" GPU-8f , MIG-1 ", ["GPU-8f", "MIG-1"]), ("", []), ("-1", []), ("1,-1,2", ["1"])],
)
def test_gpus_of_the_variable(given: str, expected: list[str]) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": given}) == expected


def test_gpus_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "local_gpus", lambda: ["NVIDIA H100", "NVIDIA H100"])
    assert visible_gpus({}) == ["0", "1"]


def test_places() -> None:
    assert places([]) == [None]
    assert places([], 2) == [None, None]
    assert places(["4", "6"]) == ["4", "6"]
    assert places(["4", "6"], 1) == ["4"]
    assert places(["4", "6"], 3) == ["4", "6", "4"]


def test_every_task_has_a_result() -> None:
    with Crew(["a", "b", "c"]) as crew:
        results = dict(crew.work(range(20), lambda task, place: (task * 2, place)))
    assert {task: result[0] for task, result in results.items()} == {task: task * 2 for task in range(20)}
    assert {place for _, place in results.values()} <= {"a", "b", "c"}


def test_an_error_of_a_task_is_raised() -> None:
    def do(task: int, _: str | None) -> int:
        return 1 // task

    with pytest.raises(ZeroDivisionError), Crew([None]) as crew:
        list(crew.work([1, 0, 2], do))


def test_a_child_ends_with_the_crew() -> None:
    """A child that exits with 0 on SIGTERM does not count as done."""
    polite = [
        sys.executable,
        "-c",
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(0)); time.sleep(600)",
    ]
    started: list[subprocess.Popen[bytes]] = []
    ended: list[bool] = []

    def do(_: int, __: str | None) -> int:
        started.append(crew.start(polite))
        if len(started) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        try:
            return crew.wait(started[-1])
        except Ended:
            ended.append(True)
            raise

    with pytest.raises(KeyboardInterrupt), Crew([None, None]) as crew:
        list(crew.work([1, 2, 3], do))
    assert [child.poll() is not None for child in started] == [True, True]
    assert ended == [True, True]
    with pytest.raises(Ended):
        crew.start(SLEEP)


def test_a_child_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.1)
    with Crew([None]) as crew:
        child = crew.start([*STUBBORN, str(tmp_path / "ready")])
        wait_for((tmp_path / "ready").exists, "the child")
    assert child.wait() == -signal.SIGKILL


def test_a_child_does_not_outlive_a_killed_command(tmp_path: Path) -> None:
    code = (
        "import sys, time; from lynx_parallel.engine.crew import Crew\n"
        "with Crew([None]) as crew:\n"
        f"    ended = crew.start(['true']); crew.wait(ended)\n"
        f"    print(crew.start({SLEEP!r}).pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout
        child = psutil.Process(int(command.stdout.readline()))
        assert child.is_running()
        command.kill()
    wait_for(
        lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the end of the child", within=30
    )
