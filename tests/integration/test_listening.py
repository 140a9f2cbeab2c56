"""A run of its own is reached from this machine alone, and by nobody without its token."""

from __future__ import annotations

import contextlib
import signal
import stat
from pathlib import Path

import psutil

from tests.helpers.command import PATIENCE_S, environment, started, steps, wait_for
from tests.helpers.listeners import is_loopback, listeners


def authentication(process: psutil.Process) -> tuple[str, int] | None:
    """A raylet's mode, and the mode bits of the file that holds its token; None of anything else."""
    with contextlib.suppress(psutil.NoSuchProcess):
        if process.name() == "raylet":
            environ = process.environ()
            return environ["RAY_AUTH_MODE"], stat.S_IMODE(Path(environ["RAY_AUTH_TOKEN_PATH"]).stat().st_mode)
    return None


def test_nothing_listens_beyond_this_machine(campaign: Path, tmp_path: Path) -> None:
    env = environment() | {"HOME": str(tmp_path / "home")}
    env.pop("RAY_AUTH_MODE")  # as outside CI
    Path(env["HOME"]).mkdir()
    settings = ("--only", "astronaut/beach", "--set", "sampling.num_inference_steps=1000")
    with started(campaign, *settings, cwd=tmp_path, env=env) as driver:
        wait_for(lambda: 3 in steps(tmp_path / "renders" / "demo", 1, rank=1), "rendering")
        found = listeners(psutil.Process(driver.pid))
        modes = [authentication(process) for process in psutil.Process(driver.pid).children(recursive=True)]
        assert [mode for mode in modes if mode] == [("token", 0o600)]
        driver.send_signal(signal.SIGTERM)
        driver.communicate(timeout=PATIENCE_S)

    # All were asked: Ray's servers, and ranks, which listen for Ray and for each other.
    assert {"gcs_server", "raylet"} <= {name for name, _ in found}
    assert len([name for name, _ in found if name.startswith("ray::Rank")]) > 2
    assert [one for one in found if not is_loopback(one[1])] == []
    assert list((tmp_path / "home").iterdir()) == []  # the token was this run's own
