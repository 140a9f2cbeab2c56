"""Ctrl-C and SIGTERM: the exit code, and no process left."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
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
    lynx_render,
    ranks_of,
    saved_steps,
    sidecars,
    started,
    steps,
    wait_for,
)

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


@pytest.mark.parametrize("moment", ["starting", "rendering"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything(start: Start, tmp_path: Path, number: signal.Signals, moment: str) -> None:
    output = tmp_path / "renders" / "demo"
    driver = start("--set", "sampling.num_inference_steps=1000")
    process = psutil.Process(driver.pid)
    if moment == "starting":
        wait_for(lambda: len(process.children(recursive=True)) >= 2, "Ray starting")
    else:
        wait_for(lambda: 3 in steps(output, 1, rank=1), "rendering")
    family = process.children(recursive=True)
    assert family

    driver.send_signal(number)
    printed, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 128 + number, printed
    assert "Traceback" not in printed
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    assert bool(list((output / ".lynx" / "partial").glob("*"))) == (moment == "rendering")
    assert not sidecars(output)
    assert not (output / ".lynx" / "lock").exists()


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


def test_stopped_and_resumed(start: Start, campaign: Path, tmp_path: Path) -> None:
    """SIGUSR1 ends with 75; the next run goes on after the saved step, and ends with the same bits."""
    settings = ("--set", "sampling.num_inference_steps=80")
    output, whole = tmp_path / "renders" / "demo", tmp_path / "whole"
    driver = start(*settings)
    wait_for(lambda: len(steps(output, 1)) >= 5, "rendering")
    driver.send_signal(signal.SIGUSR1)
    printed, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 75, printed
    done = steps(output, 1)[-1]
    assert f"saved and stopped after step {done} of 80" in printed
    assert "SIGUSR1: stopping; finished shots stay, run again to resume" in printed
    assert re.search(r"^0 rendered, .* 0 blocked, 1 left in \d+ s: .*; run again to resume$", printed, re.M)
    assert len(list((output / ".lynx" / "partial").iterdir())) == 1

    resumed = lynx_render(campaign, "--only", "astronaut/beach", *settings, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stdout
    assert f"[0/1] astronaut/beach-t01: resuming at step {done + 1} of 80" in resumed.stdout
    assert "left" not in resumed.stdout
    assert steps(output, 2) == list(range(done + 1, 81))
    assert not list((output / ".lynx" / "partial").iterdir())

    undisturbed = lynx_render(
        campaign, "--only", "astronaut/beach", *settings, "--set", f"output={whole}", cwd=tmp_path
    )
    assert undisturbed.returncode == 0
    name = "astronaut/beach-t01.latents.safetensors"
    assert (output / name).read_bytes() == (whole / name).read_bytes()


def test_a_killed_rank_costs_an_attempt_and_no_shot(start: Start, tmp_path: Path) -> None:
    output = tmp_path / "renders" / "demo"
    driver = start("--set", "sampling.num_inference_steps=80")
    wait_for(lambda: len(steps(output, 1)) >= 3, "rendering")
    ranks = ranks_of(driver.pid)
    assert len(ranks) == 2
    ranks[-1].kill()
    printed, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, printed
    assert "died, to be tried again" in printed
    assert "1 rendered, 0 encoded, 0 already done, 0 failed, 0 blocked, 1 tried again" in printed
    events = [json.loads(line)["event"] for line in (output / ".lynx" / "journal.jsonl").read_text().splitlines()]
    assert events == ["run_started", "attempt", "retry", "attempt", "done", "run_ended"]


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


def test_a_hanging_rank_is_seen_and_the_shot_made_again(start: Start, tmp_path: Path) -> None:
    output = tmp_path / "renders" / "demo"
    driver = start("--hung-after", "12s", "--set", "sampling.num_inference_steps=80")
    wait_for(lambda: len(steps(output, 1)) >= 3, "rendering")
    stopped = ranks_of(driver.pid)[1]
    stopped.suspend()
    printed, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, printed
    assert re.search(r"hung, to be tried again: rank . does not answer for 12 s", printed), printed
    assert psutil.wait_procs([stopped], timeout=20)[1] == []


def test_a_killed_driver_leaves_nothing_behind(start: Start, campaign: Path, tmp_path: Path, fast_disk: Path) -> None:
    """Neither a process, stopped ones included, nor Ray's folder; the next run goes on after the saved step."""
    output = fast_disk
    settings = ("--save-every", "0s", "--set", "sampling.num_inference_steps=120", "--set", f"output={output}")
    driver = start(*settings)
    wait_for(lambda: saved_steps(output) > 2, "rendering")
    family = psutil.Process(driver.pid).children(recursive=True)
    [folder] = {word for p in family for word in re.findall(r"/tmp/lynx-ray-\w+", command_line(p))}
    ranks_of(driver.pid)[1].suspend()
    driver.kill()
    driver.communicate()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    wait_for(lambda: not Path(folder).exists(), "Ray's folder gone")
    assert not sidecars(output)

    saved = saved_steps(output)
    resumed = lynx_render(campaign, "--only", "astronaut/beach", *settings, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stdout
    assert steps(output, 2) == list(range(saved + 1, 121))
