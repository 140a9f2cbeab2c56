"""Ctrl-C and SIGTERM: the exit code, and no process left."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.command import COMMAND, at_work, environment, lynx_render, ranks_of, saved_steps, steps, wait_for


@pytest.mark.parametrize("moment", ["starting", "rendering"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything(campaign: Path, tmp_path: Path, number: signal.Signals, moment: str) -> None:
    output = tmp_path / "renders" / "demo"
    driver = subprocess.Popen(
        [*COMMAND, str(campaign), "--set", "sampling.num_inference_steps=1000"],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    process = psutil.Process(driver.pid)
    logs = output / ".lynx" / "logs"
    if moment == "starting":
        wait_for(lambda: len(process.children(recursive=True)) >= 2, 60, "Ray starting")
    else:
        wait_for(lambda: any("step 3/" in log.read_text() for log in logs.rglob("rank1.log")), 120, "rendering")
    started = process.children(recursive=True)
    assert started

    driver.send_signal(number)
    printed, _ = driver.communicate(timeout=15)
    assert driver.returncode == 128 + number, printed
    assert "Traceback" not in printed
    _, alive = psutil.wait_procs(started, timeout=1)
    assert not alive
    assert not list(output.rglob("*.json"))
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


def start(campaign: Path, tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, str(campaign), "--only", "astronaut/beach", *arguments],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def test_put_aside_and_gone_on_with(campaign: Path, tmp_path: Path) -> None:
    """SIGUSR1 ends with 75; the next run goes on after the saved step, and ends with the same bits."""
    settings = ("--set", "sampling.num_inference_steps=200")
    output, whole = tmp_path / "renders" / "demo", tmp_path / "whole"
    driver = start(campaign, tmp_path, *settings)
    wait_for(lambda: len(steps(output, 1)) >= 5, 120, "rendering")
    driver.send_signal(signal.SIGUSR1)
    printed, _ = driver.communicate(timeout=20)
    assert driver.returncode == 75, printed
    done = steps(output, 1)[-1]
    assert f"put aside after step {done} of 200" in printed
    assert len(list((output / ".lynx" / "partial").iterdir())) == 1

    resumed = lynx_render(campaign, "--only", "astronaut/beach", *settings, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stdout
    assert steps(output, 2) == list(range(done + 1, 201))
    assert not list((output / ".lynx" / "partial").iterdir())

    undisturbed = lynx_render(
        campaign, "--only", "astronaut/beach", *settings, "--set", f"output={whole}", cwd=tmp_path
    )
    assert undisturbed.returncode == 0
    name = "astronaut/beach-t01.latents.safetensors"
    assert (output / name).read_bytes() == (whole / name).read_bytes()


def test_a_killed_rank_costs_an_attempt_and_no_shot(campaign: Path, tmp_path: Path) -> None:
    output = tmp_path / "renders" / "demo"
    driver = start(campaign, tmp_path, "--set", "sampling.num_inference_steps=200")
    wait_for(lambda: len(steps(output, 1)) >= 3, 120, "rendering")
    ranks = ranks_of(driver.pid)
    assert len(ranks) == 2
    ranks[-1].kill()
    printed, _ = driver.communicate(timeout=180)
    assert driver.returncode == 0, printed
    assert "died, to be tried again" in printed
    assert "1 rendered, 0 encoded, 0 already done, 0 failed, 0 blocked, 1 tried again" in printed
    events = [json.loads(line)["event"] for line in (output / ".lynx" / "journal.jsonl").read_text().splitlines()]
    assert events == ["run_started", "attempt", "retry", "attempt", "done", "run_ended"]


@pytest.fixture
def fast_disk() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_killed_after_step_3_of_6_the_retry_makes_steps_4_to_6(campaign: Path, tmp_path: Path, fast_disk: Path) -> None:
    output = fast_disk
    size = [f"sampling.{part}" for part in ("num_inference_steps=6", "width=320", "height=240", "num_frames=17")]
    settings = [argument for setting in size for argument in ("--set", setting)]
    driver = start(campaign, tmp_path, "--save-every", "0s", "--set", f"output={output}", *settings)
    wait_for(lambda: 1 in steps(output, 1), 120, "step 1", every=0.002)
    peer = at_work(driver.pid, rank=1)
    wait_for(lambda: 2 in steps(output, 1), 60, "step 2", every=0.002)
    peer.suspend()  # rank 0, which saves, waits for it in step 3
    time.sleep(10)  # saving takes at most 2 % of the time: now step 3 is sure to be saved
    assert steps(output, 1) == [1, 2]
    peer.resume()
    wait_for(lambda: saved_steps(output) >= 3, 60, "step 3 saved", every=0.002)
    peer.kill()
    printed, _ = driver.communicate(timeout=180)
    assert driver.returncode == 0, printed
    assert "0 failed, 0 blocked, 1 tried again" in printed
    assert [steps(output, 2, rank) for rank in (0, 1)] == [[4, 5, 6], [4, 5, 6]]


def test_a_hanging_rank_is_seen_and_the_shot_made_again(campaign: Path, tmp_path: Path) -> None:
    output = tmp_path / "renders" / "demo"
    driver = start(campaign, tmp_path, "--hung-after", "5s", "--set", "sampling.num_inference_steps=200")
    wait_for(lambda: len(steps(output, 1)) >= 3, 120, "rendering")
    stopped = ranks_of(driver.pid)[1]
    stopped.suspend()
    printed, _ = driver.communicate(timeout=180)
    assert driver.returncode == 0, printed
    assert re.search(r"hung, to be tried again: rank . does not answer for 5 s", printed), printed
    assert not stopped.is_running()


def test_a_killed_driver_leaves_nothing_behind(campaign: Path, tmp_path: Path) -> None:
    """Neither a process, stopped ones included, nor Ray's folder; the next run goes on after the saved step."""
    output = tmp_path / "renders" / "demo"
    settings = ("--save-every", "0s", "--set", "sampling.num_inference_steps=300")
    driver = start(campaign, tmp_path, *settings)
    wait_for(lambda: saved_steps(output) > 2, 120, "rendering")
    family = psutil.Process(driver.pid).children(recursive=True)
    [folder] = {word for p in family for word in re.findall(r"/tmp/lynx-ray-\w+", " ".join(p.cmdline()))}
    ranks_of(driver.pid)[1].suspend()
    driver.kill()
    driver.communicate()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    wait_for(lambda: not Path(folder).exists(), 10, "Ray's folder gone")
    assert not list(output.rglob("*.json"))

    saved = saved_steps(output)
    resumed = lynx_render(campaign, "--only", "astronaut/beach", *settings, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stdout
    assert steps(output, 2) == list(range(saved + 1, 301))
