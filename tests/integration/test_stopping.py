"""Signals, killed and hanging processes: exit codes, no process left, and a shot that resumes."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.helpers.command import (
    ONE_RANK,
    PATIENCE_S,
    at_work,
    command_line,
    environment,
    lynx_render,
    saved_steps,
    sidecars,
    started,
    steps,
    wait_for,
)
from tests.helpers.listeners import is_loopback, listeners

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(campaign: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a driver with one shot to make; it does not outlive the test."""
    with contextlib.ExitStack() as drivers:
        yield lambda *arguments: drivers.enter_context(
            started(campaign, "--only", "astronaut/beach", *arguments, cwd=tmp_path)
        )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_ray_starts(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    output = tmp_path / "renders" / "demo"
    driver = start("--set", "sampling.num_inference_steps=1000")
    process = psutil.Process(driver.pid)
    wait_for(lambda: len(process.children(recursive=True)) >= 2, "Ray starting")
    _end(driver, number, output)
    assert not list((output / ".lynx" / "partial").glob("*"))


def test_sigterm_while_rendering_and_nothing_listens_beyond_this_machine(campaign: Path, tmp_path: Path) -> None:
    """Ray and the ranks are reached from this machine alone, and by nobody without the run's token."""
    output = tmp_path / "renders" / "demo"
    env = environment() | {"HOME": str(tmp_path / "home")}
    env.pop("RAY_AUTH_MODE")  # as outside CI
    Path(env["HOME"]).mkdir()
    settings = ("--only", "astronaut/beach", "--set", "sampling.num_inference_steps=1000")
    with started(campaign, *settings, cwd=tmp_path, env=env) as driver:
        wait_for(lambda: 3 in steps(output, 1, rank=1), "rendering")
        process = psutil.Process(driver.pid)
        sockets = listeners(process)
        modes = [authentication(child) for child in process.children(recursive=True)]
        idle = [child for child in process.children(recursive=True) if "ray::IDLE" in command_line(child)]
        _end(driver, signal.SIGTERM, output)
    assert [mode for mode in modes if mode] == [("token", 0o600)]
    assert not idle  # every Python process that Ray has started for work is a rank
    # All were asked: Ray's servers, and ranks, which listen for Ray and for each other.
    assert {"gcs_server", "raylet"} <= {name for name, _ in sockets}
    assert len([name for name, _ in sockets if name.startswith("ray::Rank")]) > 2
    assert [one for one in sockets if not is_loopback(one[1])] == []
    assert list((tmp_path / "home").iterdir()) == []  # the token was this run's own
    assert list((output / ".lynx" / "partial").glob("*"))


def authentication(process: psutil.Process) -> tuple[str, int] | None:
    """A raylet's mode, and the mode bits of the file that holds its token; None of anything else."""
    with contextlib.suppress(psutil.NoSuchProcess):
        if process.name() == "raylet":
            environ = process.environ()
            return environ["RAY_AUTH_MODE"], stat.S_IMODE(Path(environ["RAY_AUTH_TOKEN_PATH"]).stat().st_mode)
    return None


def _end(driver: subprocess.Popen[str], number: signal.Signals, output: Path) -> None:
    """Sends a signal that ends the run. Its processes and its lock are gone afterwards, and it has finished no shot."""
    family = psutil.Process(driver.pid).children(recursive=True)
    assert family
    driver.send_signal(number)
    printed, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 128 + number, printed
    assert "Traceback" not in printed
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    assert not (output / ".lynx" / "lock").exists()
    assert not sidecars(output)


def test_a_second_driver_is_refused(campaign: Path, tmp_path: Path) -> None:
    lock = tmp_path / "renders" / "demo" / ".lynx" / "lock"
    lock.parent.mkdir(parents=True)
    mine = psutil.Process()
    ticks = Path(f"/proc/{mine.pid}/stat").read_text().rpartition(")")[2].split()[19]
    lock.write_text(json.dumps({"host": socket.gethostname(), "pid": mine.pid, "started": ticks}))
    run = lynx_render(campaign, cwd=tmp_path)
    assert run.returncode == 3
    assert f"another driver is at work here: process {mine.pid}" in run.stderr
    assert lock.exists()


def test_killed_and_hanging_processes(start: Start, fast_disk: Path) -> None:
    """A rank is killed, a rank hangs, and at last the driver is killed.

    ``tests/forked/test_interruptions.py`` resumes such runs to their end.

    SIGKILL of the driver leaves nothing behind: no process, stopped ones included, and no folder of Ray's.
    """
    output = fast_disk / "demo"
    settings = ("--set", "sampling.num_inference_steps=1000", "--set", f"output={output}")
    driver = start("--save-every", "0s", "--hung-after", "12s", *settings, *ONE_RANK)
    wait_for(lambda: saved_steps(output) > 2, "rendering")
    at_work(driver.pid, rank=0).kill()
    wait_for(lambda: len(steps(output, 2)) >= 3, "the retry")
    stopped = at_work(driver.pid, rank=0)
    stopped.suspend()
    wait_for(lambda: len(steps(output, 3)) >= 3, "the retry")
    assert psutil.wait_procs([stopped], timeout=20)[1] == []
    made = [steps(output, attempt) for attempt in (1, 2, 3)]
    assert made[0][0] == 1
    assert all(before[-1] >= after[0] - 1 > 2 for before, after in itertools.pairwise(made))

    family = psutil.Process(driver.pid).children(recursive=True)
    [folder] = {word for p in family for word in re.findall(r"/tmp/lynx-ray-\w+", command_line(p))}
    at_work(driver.pid, rank=0).suspend()
    driver.kill()
    printed, _ = driver.communicate()
    assert not psutil.wait_procs(family, timeout=60)[1]
    wait_for(lambda: not Path(folder).exists(), "Ray's folder gone")
    assert "died, to be tried again: ActorDiedError: " in printed
    assert "hung, to be tried again: rank 0 does not answer for 12 s" in printed
    events = [json.loads(line)["event"] for line in (output / ".lynx" / "journal.jsonl").read_text().splitlines()]
    events = [event for event in events if event != "gang_started"]
    assert events == ["run_started", "attempt", "retry", "attempt", "retry", "attempt"]
    assert len(list((output / ".lynx" / "partial").iterdir())) == 1
    assert not sidecars(output)
