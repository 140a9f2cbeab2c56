"""Ctrl-C and SIGTERM: the exit code, and no process left."""

from __future__ import annotations

import signal
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
    import json
    import socket

    lock.write_text(json.dumps({"host": socket.gethostname(), "pid": mine.pid, "started": ticks}))
    run = lynx_render(campaign, cwd=tmp_path)
    assert run.returncode == 3
    assert f"another driver is at work here: process {mine.pid}" in run.stderr
    assert lock.exists()
