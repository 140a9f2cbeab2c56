"""Ctrl-C and SIGTERM: the exit code, and no process left."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.command import COMMAND, environment, lynx_render


def wait_for(condition, seconds: float, what: str) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.1)


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


def steps(output: Path, attempt: int) -> list[int]:
    log = output / ".lynx" / "logs" / "astronaut" / "beach-t01" / str(attempt) / "rank0.log"
    return [int(n) for n in re.findall(r" step (\d+)/", log.read_text())] if log.exists() else []


def test_put_aside_and_gone_on_with(campaign: Path, tmp_path: Path) -> None:
    """SIGUSR1 ends with 75; the next run goes on after the saved step, and ends with the same bits."""
    settings = ("--set", "sampling.num_inference_steps=400")
    output, whole = tmp_path / "renders" / "demo", tmp_path / "whole"
    driver = start(campaign, tmp_path, *settings)
    wait_for(lambda: len(steps(output, 1)) >= 5, 120, "rendering")
    driver.send_signal(signal.SIGUSR1)
    printed, _ = driver.communicate(timeout=20)
    assert driver.returncode == 75, printed
    done = steps(output, 1)[-1]
    assert f"put aside after step {done} of 400" in printed
    assert len(list((output / ".lynx" / "partial").iterdir())) == 1

    resumed = lynx_render(campaign, "--only", "astronaut/beach", *settings, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stdout
    assert steps(output, 2) == list(range(done + 1, 401))
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
    ranks = [p for p in psutil.Process(driver.pid).children(recursive=True) if "Rank" in " ".join(p.cmdline())]
    assert len(ranks) == 2
    ranks[-1].kill()
    printed, _ = driver.communicate(timeout=180)
    assert driver.returncode == 0, printed
    assert "died, to be tried again" in printed
    assert "1 rendered, 0 encoded, 0 already done, 0 failed, 0 blocked, 1 tried again" in printed
    events = [json.loads(line)["event"] for line in (output / ".lynx" / "journal.jsonl").read_text().splitlines()]
    assert events == ["run_started", "attempt", "retry", "attempt", "done", "run_ended"]
