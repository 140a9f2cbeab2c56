"""Signals, killed and hanging processes: exit codes, no process left, and a shot that resumes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.helpers.command import (
    PATIENCE_S,
    at_work,
    command_line,
    environment,
    lynx_render,
    ranks_of,
    saved_steps,
    sidecars,
    started,
    steps,
    wait_for,
)
from tests.helpers.listeners import is_loopback, listeners
from tests.helpers.ray_head import Head

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(campaign: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a driver with one shot to make; it does not outlive the test."""
    with contextlib.ExitStack() as drivers:
        yield lambda *arguments: drivers.enter_context(
            started(campaign, "--only", "astronaut/beach", *arguments, cwd=tmp_path)
        )


@pytest.fixture
def fast_disk() -> Iterator[Path]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


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
        _end(driver, signal.SIGTERM, output)
    assert [mode for mode in modes if mode] == [("token", 0o600)]
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


def test_one_shot_through_every_interruption(
    start: Start, head: Head, campaign: Path, tmp_path: Path, fast_disk: Path
) -> None:
    """Four runs make one shot: each run resumes after the last saved step. The final bits are those of a calm run.

    The first run ends by Ctrl-C, the second by SIGUSR1, the third by SIGKILL of the driver. In the fourth, one rank is
    killed and one hangs. Each costs an attempt.
    """
    output, whole, total = fast_disk / "demo", tmp_path / "whole", 120
    settings = ("--set", f"sampling.num_inference_steps={total}")
    options = ("--save-every", "0s", "--hung-after", "12s", *settings, "--set", f"output={output}")

    # Ctrl-C.
    driver = start(*options)
    wait_for(lambda: 3 in steps(output, 1, rank=1), "rendering")
    _end(driver, signal.SIGINT, output)
    assert len(list((output / ".lynx" / "partial").iterdir())) == 1

    # SIGUSR1 saves and stops.
    saved = saved_steps(output)
    driver = start(*options)
    wait_for(lambda: len(steps(output, 2)) >= 5, "rendering")
    driver.send_signal(signal.SIGUSR1)
    printed, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 75, printed
    done = steps(output, 2)[-1]
    assert f"[0/1] astronaut/beach-t01: resuming at step {saved + 1} of {total}" in printed
    assert steps(output, 2) == list(range(saved + 1, done + 1))
    assert f"saved and stopped after step {done} of {total}" in printed
    assert "SIGUSR1: stopping; finished shots stay, run again to resume" in printed
    assert re.search(r"^0 rendered, .* 0 blocked, 1 left in \d+ s: .*; run again to resume$", printed, re.M)
    assert len(list((output / ".lynx" / "partial").iterdir())) == 1

    # SIGKILL of the driver leaves nothing behind: no process, stopped ones included, and no folder of Ray's.
    driver = start(*options)
    wait_for(lambda: saved_steps(output) > done + 2, "rendering")
    assert steps(output, 3)[0] == done + 1
    family = psutil.Process(driver.pid).children(recursive=True)
    [folder] = {word for p in family for word in re.findall(r"/tmp/lynx-ray-\w+", command_line(p))}
    ranks_of(driver.pid)[1].suspend()
    driver.kill()
    driver.communicate()
    assert not psutil.wait_procs(family, timeout=60)[1]
    wait_for(lambda: not Path(folder).exists(), "Ray's folder gone")
    assert not sidecars(output)

    # A killed rank and a hanging rank cost an attempt each, and no shot.
    saved = saved_steps(output)
    driver = start(*options)
    wait_for(lambda: len(steps(output, 4)) >= 3, "rendering")
    ranks = ranks_of(driver.pid)
    assert len(ranks) == 2
    ranks[-1].kill()
    wait_for(lambda: len(steps(output, 5)) >= 3, "the retry")
    stopped = ranks_of(driver.pid)[1]
    stopped.suspend()
    printed, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, printed
    assert steps(output, 4)[0] == saved + 1
    assert steps(output, 6)[-1] == total
    # On a busy machine, the killed rank's peer reports the broken connection before Ray reports the death.
    assert re.search(r"(died|raised), to be tried again", printed), printed
    assert re.search(r"hung, to be tried again: rank . does not answer for 12 s", printed), printed
    assert psutil.wait_procs([stopped], timeout=20)[1] == []
    # Nothing follows the last number: a shot that the run leaves would be counted there.
    summary = r"^1 rendered, 0 encoded, 0 already done, 0 failed, 0 blocked, 2 tried again in [^,]+: "
    assert re.search(summary, printed, re.M), printed
    events = [json.loads(line)["event"] for line in (output / ".lynx" / "journal.jsonl").read_text().splitlines()]
    assert events.count("gang_started") > 4, "each of them is reported"
    events = [event for event in events if event != "gang_started"]
    assert events[-8:] == ["run_started", "attempt", "retry", "attempt", "retry", "attempt", "done", "run_ended"]
    assert not list((output / ".lynx" / "partial").iterdir())

    calm = head.render(campaign, "--only", "astronaut/beach", *settings, "--set", f"output={whole}", cwd=tmp_path)
    assert calm.returncode == 0
    name = "astronaut/beach-t01.latents.safetensors"
    assert (output / name).read_bytes() == (whole / name).read_bytes()


def test_killed_after_step_3_of_6_the_retry_makes_steps_4_to_6(start: Start, fast_disk: Path) -> None:
    output = fast_disk
    size = [f"sampling.{part}" for part in ("num_inference_steps=6", "width=320", "height=240", "num_frames=17")]
    settings = [argument for setting in size for argument in ("--set", setting)]
    driver = start("--save-every", "0s", "--set", f"output={output}", *settings)
    wait_for(lambda: 1 in steps(output, 1), "step 1", every=0.002)
    peer = at_work(driver.pid, rank=1)
    wait_for(lambda: 2 in steps(output, 1), "step 2", every=0.002)
    peer.suspend()  # rank 0, which saves, waits for it in step 3
    time.sleep(10)  # saving takes at most 2 % of the time: now step 3 is sure to be saved
    assert steps(output, 1) == [1, 2]
    peer.resume()
    wait_for(lambda: saved_steps(output) >= 3, "step 3 saved", every=0.002)
    peer.kill()
    printed, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, printed
    assert "0 failed, 0 blocked, 1 tried again" in printed
    assert [steps(output, 2, rank) for rank in (0, 1)] == [[4, 5, 6], [4, 5, 6]]
