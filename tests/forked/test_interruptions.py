"""Signals, killed and hanging processes: exit codes, and a shot that resumes. See also integration/test_stopping.py."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.helpers import forked_command
from tests.helpers.command import at_work, ranks_of, saved_steps, sidecars, steps, wait_for
from tests.helpers.forked_command import Driver

TWO_RANKS = ("--only", "astronaut/beach", "--ulysses", "2")

Start = Callable[..., Driver]


@pytest.fixture
def start(campaign: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a driver with one shot to make on two ranks; it does not outlive the test."""
    with contextlib.ExitStack() as drivers:
        yield lambda *arguments: drivers.enter_context(
            forked_command.started(campaign, *TWO_RANKS, *arguments, cwd=tmp_path)
        )


def test_one_shot_through_every_interruption(start: Start, campaign: Path, tmp_path: Path, fast_disk: Path) -> None:
    """Four runs make one shot: each run resumes after the last saved step. The final bits are those of a calm run.

    The first run ends by Ctrl-C, the second by SIGUSR1, the third by SIGKILL of the driver. In the fourth, one rank is
    killed and one hangs. Each costs an attempt.
    """
    output, whole, total = fast_disk / "demo", tmp_path / "whole", 80
    settings = ("--set", f"sampling.num_inference_steps={total}")
    options = ("--save-every", "0s", "--hung-after", "12s", *settings, "--set", f"output={output}")

    # Ctrl-C.
    driver = start(*options)
    wait_for(lambda: 3 in steps(output, 1, rank=1), "rendering", every=0.01)
    family = psutil.Process(driver.pid).children(recursive=True)
    assert family
    driver.send_signal(signal.SIGINT)
    ended = driver.ended()
    assert not psutil.wait_procs(family, timeout=20)[1]
    assert ended.returncode == 130, ended
    assert "Traceback" not in ended.stdout + ended.stderr
    assert not (output / ".lynx" / "lock").exists()
    assert not sidecars(output)
    assert len(list((output / ".lynx" / "partial").iterdir())) == 1

    # SIGUSR1 saves and stops.
    saved = saved_steps(output)
    driver = start(*options)
    wait_for(lambda: len(steps(output, 2)) >= 5, "rendering", every=0.01)
    driver.send_signal(signal.SIGUSR1)
    ended = driver.ended()
    assert ended.returncode == 75, ended
    done = steps(output, 2)[-1]
    assert f"[0/1] astronaut/beach-t01: resuming at step {saved + 1} of {total}" in ended.stdout
    assert steps(output, 2) == list(range(saved + 1, done + 1))
    assert f"saved and stopped after step {done} of {total}" in ended.stdout
    assert "SIGUSR1: stopping; finished shots stay, run again to resume" in ended.stdout
    assert re.search(r"^0 rendered, .* 0 blocked, 1 left in \d+ s: .*; run again to resume$", ended.stdout, re.M)
    assert len(list((output / ".lynx" / "partial").iterdir())) == 1

    # SIGKILL of the driver.
    driver = start(*options)
    wait_for(lambda: saved_steps(output) > done + 2, "rendering", every=0.01)
    assert steps(output, 3)[0] == done + 1
    driver.kill()
    assert driver.returncode == -signal.SIGKILL
    assert not sidecars(output)

    # A killed rank and a hanging rank cost an attempt each, and no shot.
    saved = saved_steps(output)
    driver = start(*options)
    wait_for(lambda: len(steps(output, 4)) >= 3, "rendering", every=0.01)
    ranks = ranks_of(driver.pid)
    assert len(ranks) == 2
    ranks[-1].kill()
    wait_for(lambda: len(steps(output, 5)) >= 3, "the retry", every=0.01)
    stopped = at_work(driver.pid, rank=1)
    stopped.suspend()
    ended = driver.ended()
    assert ended.returncode == 0, ended
    assert steps(output, 4)[0] == saved + 1
    assert steps(output, 6)[-1] == total
    # The killed rank's peer may report the broken connection before the death is seen.
    assert re.search(r"(died|raised), to be tried again", ended.stdout), ended
    assert re.search(r"hung, to be tried again: rank . does not answer for 12 s", ended.stdout), ended
    assert psutil.wait_procs([stopped], timeout=20)[1] == []
    # Nothing follows the last number: a shot that the run leaves would be counted there.
    summary = r"^1 rendered, 0 encoded, 0 already done, 0 failed, 0 blocked, 2 tried again in [^,]+: "
    assert re.search(summary, ended.stdout, re.M), ended
    events = [json.loads(line)["event"] for line in (output / ".lynx" / "journal.jsonl").read_text().splitlines()]
    assert events.count("gang_started") > 4, "each of them is reported"
    events = [event for event in events if event != "gang_started"]
    assert events[-8:] == ["run_started", "attempt", "retry", "attempt", "retry", "attempt", "done", "run_ended"]
    assert not list((output / ".lynx" / "partial").iterdir())

    calm = forked_command.render(campaign, *TWO_RANKS, *settings, "--set", f"output={whole}", cwd=tmp_path)
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
    ended = driver.ended()
    assert ended.returncode == 0, ended
    assert "0 failed, 0 blocked, 1 tried again" in ended.stdout
    assert [steps(output, 2, rank) for rank in (0, 1)] == [[4, 5, 6], [4, 5, 6]]
