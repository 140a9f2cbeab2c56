"""``ray job submit`` to a head of its own, with the dashboard and a token."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.command import COMMAND, PATIENCE_S, environment, ranks_of, sidecars, steps, wait_for
from tests.helpers.demo_output import NAMES, digests
from tests.helpers.listeners import is_loopback, listeners

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def free_ports(count: int) -> list[int]:
    """Below those that the kernel gives to others while the head starts."""
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        for port in random.sample(range(20_000, 32_000), 1000):
            with contextlib.suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                ports.append(port)
            if len(ports) == count:
                return ports
    raise AssertionError("no free ports")


@dataclass
class Head:
    """A cluster of one machine, and what its users know: the dashboard's address, the token in ``HOME``."""

    process: psutil.Process
    url: str
    token: str
    env: dict[str, str]

    def start(self, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
        """``ray job ARGUMENTS``, its output in one pipe."""
        return subprocess.Popen(
            [*RAY, "job", *arguments],
            cwd=cwd, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def job(self, *arguments: str, cwd: Path) -> tuple[int, str]:
        process = self.start(*arguments, cwd=cwd)
        printed, _ = process.communicate(timeout=PATIENCE_S)
        return process.returncode, printed

    def info(self, job: str) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.url}/api/jobs/{job}", headers={"Authorization": f"Bearer {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def head(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    home = tmp_path_factory.mktemp("home")
    folder = tempfile.mkdtemp(prefix="lynx-head-", dir="/tmp")  # short, for the limit on socket paths
    gcs, dashboard, client, agent, agent_grpc, metrics, env_agent, node, objects, *others = free_ports(11)
    env = environment() | {
        "HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_JOB_STOP_WAIT_TIME_S": "30", "RAY_USAGE_STATS_ENABLED": "0",
        # Keeps it on the loopback interface, which --node-ip-address does not.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "AUTOSCALER_METRIC_PORT": str(others[0]), "DASHBOARD_METRIC_PORT": str(others[1]),
    }  # fmt: skip
    url = f"http://127.0.0.1:{dashboard}"
    subprocess.run([*RAY, "get-auth-token", "--generate"], env=env, check=True, capture_output=True, timeout=PATIENCE_S)
    started = subprocess.Popen(
        [
            *RAY, "start", "--head", "--block", f"--port={gcs}",
            "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={agent_grpc}", f"--metrics-export-port={metrics}",
            f"--runtime-env-agent-port={env_agent}", f"--node-manager-port={node}", f"--object-manager-port={objects}",
            "--num-cpus=2", f"--object-store-memory={128 * 2**20}", f"--temp-dir={folder}",
        ],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    process = psutil.Process(started.pid)
    token = (home / ".ray" / "auth_token").read_text().strip()
    one = Head(process, url, token, env | {"RAY_ADDRESS": url})

    def up() -> bool:
        assert started.poll() is None, started.communicate()[0]
        with contextlib.suppress(OSError):
            return isinstance(one.info(""), list)
        return False

    try:
        wait_for(up, "the head")
        yield one
    finally:
        # Not `ray stop`: it ends every Ray on this machine.
        family = [process, *process.children(recursive=True)]
        started.terminate()
        _, alive = psutil.wait_procs(family, timeout=20)
        for left in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        started.communicate(timeout=20)
        shutil.rmtree(folder, ignore_errors=True)


def submission(job: str, *arguments: str) -> list[str]:
    """Arguments of ``ray job``: the working folder is uploaded, and ``lynx-render`` starts in its copy."""
    return ["submit", "--submission-id", job, "--working-dir", ".", "--", *COMMAND, *arguments]


def test_nobody_gets_in_without_the_token(head: Head, tmp_path: Path) -> None:
    stranger = subprocess.run(
        [*RAY, "job", "submit", "--", "touch", str(tmp_path / "touched")],
        env=head.env | {"HOME": str(tmp_path)}, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert stranger.returncode == 1
    assert "AuthenticationError" in stranger.stderr
    for header in ({}, {"Authorization": "Bearer " + "0" * len(head.token)}):
        request = urllib.request.Request(f"{head.url}/api/jobs/", headers=header)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=60)
        assert refused.value.code in (401, 403)
    assert not (tmp_path / "touched").exists()


def test_the_head_is_reached_from_this_machine_alone(head: Head) -> None:
    servers = {"gcs_server", "raylet"}
    wait_for(lambda: servers <= {name for name, _ in listeners(head.process)}, "all of the head")
    found = listeners(head.process)
    assert [one for one in found if not is_loopback(one[1])] == []


def test_a_campaign_is_submitted(head: Head, campaign: Path, tmp_path: Path) -> None:
    # What is rendered must not land in the folder that is uploaded, nor in its copy.
    output, working = tmp_path / "renders" / "demo", campaign.parent
    submitter = head.start(*submission("whole", "demo.yaml", "--set", f"output={output}"), cwd=working)
    assert submitter.stdout is not None
    for line in submitter.stdout:
        if line == "starting 2 ranks on cpu\n":
            break
    else:
        pytest.fail("the log did not come")
    # Lines come as they are printed, not when the job is over.
    assert head.info("whole")["status"] == "RUNNING"
    assert not list(output.rglob("*.mp4"))

    printed = submitter.communicate(timeout=PATIENCE_S)[0]
    assert submitter.returncode == 0, printed
    assert "4 rendered, 0 encoded, 0 already done, 0 failed" in printed
    info = head.info("whole")
    assert (info["status"], info["driver_exit_code"]) == ("SUCCEEDED", 0)
    assert digests(output, ".mp4").keys() == digests(output, ".json").keys() == NAMES


def test_bad_input_is_1_for_the_submitter_and_2_for_the_job(head: Head, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("version: 1\nsubjekts: {}\n")
    code, printed = head.job(*submission("bad", "bad.yaml"), cwd=tmp_path)
    assert code == 1
    assert "subjekts" in printed
    info = head.info("bad")
    assert (info["status"], info["driver_exit_code"]) == ("FAILED", 2)


def test_a_stopped_job_is_resumed(head: Head, campaign: Path, tmp_path: Path) -> None:
    output, working = tmp_path / "renders" / "demo", campaign.parent
    settings = ("demo.yaml", "--only", "astronaut/beach", "--set", "sampling.num_inference_steps=100")
    settings += ("--set", f"output={output}")
    submitter = head.start(*submission("stopped", *settings), cwd=working)
    wait_for(lambda: len(steps(output, 1)) >= 5, "rendering")
    ranks = ranks_of(head.process.pid)
    assert len(ranks) == 2

    code, printed = head.job("stop", "stopped", cwd=working)
    assert code == 0, printed
    assert head.info("stopped")["status"] == "STOPPED"
    _, alive = psutil.wait_procs(ranks, timeout=60)
    assert not alive
    printed, _ = submitter.communicate(timeout=PATIENCE_S)
    done = steps(output, 1)[-1]
    assert f"saved and stopped after step {done} of 100" in printed
    assert submitter.returncode == 0  # Ray's submitter calls a stopped job no failure
    assert not (output / ".lynx" / "lock").exists()
    assert len(list((output / ".lynx" / "partial").iterdir())) == 1
    assert not list(output.rglob("*.part")) + sidecars(output)

    code, printed = head.job(*submission("resumed", *settings), cwd=working)
    assert code == 0, printed
    assert "1 rendered" in printed
    assert steps(output, 2) == list(range(done + 1, 101))
    assert not list((output / ".lynx" / "partial").iterdir())
