"""How a run starts and ends where the machine is untidy, or Ray fails."""

from __future__ import annotations

import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from lynx_parallel.engine.ray_folder import MAX_PARENT_BYTES
from tests.helpers.command import COMMAND, ONE_RANK, PATIENCE_S, environment, started, steps, wait_for
from tests.helpers.light_command import errors_of
from tests.helpers.repository import REPOSITORY

MARK = "import os; open(os.environ['MARKER'], 'a').write(__name__ + ' ')\n"
ONE = ("--only", "astronaut/beach", *ONE_RANK)
"""One shot on one rank."""


def colours(text: str) -> bool:
    return "\x1b[" in text


def test_a_clients_folder_a_long_tmpdir_no_home_and_closed_streams(campaign: Path, tmp_path: Path, cache: Path) -> None:
    """Nothing in the working folder is executed; nothing is needed under HOME; nothing of Ray stays in TMPDIR."""
    working = tmp_path / "client"
    (working / "xfuser").mkdir(parents=True)
    for name in ("xfuser/__init__", "statistics", "yaml", "numpy"):
        (working / f"{name}.py").write_text(MARK)
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as short:
        scratch = Path(short) / ("x" * (MAX_PARENT_BYTES - len(short) - 1))
        scratch.mkdir()
        assert len(str(scratch)) == MAX_PARENT_BYTES
        env = {name: environment()[name] for name in ("PATH", "LYNX_CACHE", "CUDA_VISIBLE_DEVICES")} | {
            "HOME": "/nonexistent", "TMPDIR": str(scratch), "MARKER": str(tmp_path / "marker"),
            "PYTHONPATH": f":{REPOSITORY}:", "OMP_NUM_THREADS": "1", "RAY_memory_monitor_refresh_ms": "0",
        }  # fmt: skip
        closing = ["sh", "-c", 'exec "$@" <&- 2>&-', "sh"]
        run = subprocess.run(
            [*closing, *COMMAND, str(campaign), *ONE],
            cwd=working, env=env, stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stdout
        assert "1 rendered" in run.stdout
        assert not (tmp_path / "marker").exists()
        wait_for(lambda: not list(scratch.glob("lynx-ray-*")), "Ray's folder gone")
    phases = ["starting Ray on this machine", "starting 1 rank on cpu", "loading the weights"]
    assert [line for line in run.stdout.splitlines() if line in phases] == phases
    assert not colours(run.stdout)
    assert sorted(path.name for path in working.iterdir()) == ["numpy.py", "statistics.py", "xfuser", "yaml.py"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_cluster_that_does_not_answer_is_given_up_at_a_signal(
    campaign: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with started(campaign, "--address", address, cwd=tmp_path) as driver:
            connection, _ = silent.accept()  # asked
            assert not (tmp_path / "renders" / "demo" / ".lynx" / "lock").exists()
            connection.settimeout(PATIENCE_S)
            began = time.monotonic()
            driver.send_signal(number)
            printed, _ = driver.communicate(timeout=PATIENCE_S)
            assert time.monotonic() - began < 15  # it waits 20 s for an answer
            connection.close()
    assert driver.returncode == 128 + number, printed
    assert f"joining Ray at {address} (--address)\n{number.name}: stopping" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
def test_a_ray_that_dies_is_one_line_and_leaves_nothing(campaign: Path, tmp_path: Path, name: str) -> None:
    output = tmp_path / "renders" / "demo"
    with started(campaign, *ONE, "--set", "sampling.num_inference_steps=1000", cwd=tmp_path) as driver:
        wait_for(lambda: steps(output, 1), "rendering")
        family = psutil.Process(driver.pid).children(recursive=True)
        [victim] = [process for process in family if process.name() == name]
        victim.kill()
        printed, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 3, printed
    *_, line, help_line = printed.splitlines()
    assert line.startswith(f"Ray on this machine failed: its process {name} was killed by SIGKILL;")
    assert help_line == "help: lynx-render help LX208"
    assert not colours(printed)
    assert "Traceback" not in printed
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    assert not (output / ".lynx" / "lock").exists()
    [log] = (output / ".lynx" / "logs" / "ray").iterdir()
    assert f"(log: {log.relative_to(tmp_path)})" in printed
    assert "=== gcs_server.out ===" in log.read_text()


def test_a_ray_that_cannot_start_is_one_line(campaign: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        env = environment() | {"RAY_GCS_SERVER_PORT": str(taken.getsockname()[1])}
        run = subprocess.run(
            [*COMMAND, str(campaign), *ONE], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE_S,
            check=False,
        )  # fmt: skip
    assert run.returncode == 3, run.stdout
    assert run.stderr.startswith("Ray did not start on this machine: a port that Ray needs is taken. Unset")
    assert len(errors_of(run)) == 1
    [log] = (tmp_path / "renders" / "demo" / ".lynx" / "logs" / "ray").iterdir()
    assert f"(log: {log.relative_to(tmp_path)})" in run.stderr
    assert not (tmp_path / "renders" / "demo" / ".lynx" / "lock").exists()
