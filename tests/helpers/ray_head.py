"""A Ray cluster of one machine that runs for many tests, with a token."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.helpers.command import COMMAND, PATIENCE_S, environment, wait_for

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
    """A cluster of one machine.

    Attributes:
        address: of the cluster, for ``--address``.
        url: of the dashboard.
        metrics: address of the metrics of its node.
        token: without it, the head refuses everything. It is stored under ``HOME``.
        env: environment of its users.
    """

    process: psutil.Process
    address: str
    url: str
    metrics: str
    token: str
    env: dict[str, str]

    def render(self, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Runs ``lynx-render ARGUMENTS`` on this cluster to its end, without the seconds that starting Ray takes."""
        return subprocess.run(
            [*COMMAND, *map(str, arguments), "--address", self.address],
            cwd=cwd, env=self.env, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip

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


@contextlib.contextmanager
def ray_head(home: Path, *, dashboard: bool) -> Iterator[Head]:
    """Starts the head and ends it.

    Args:
        home: becomes its users' home folder and gets the token.
        dashboard: whether it takes jobs. Its dashboard has a dozen processes.
    """
    folder = tempfile.mkdtemp(prefix="lynx-head-", dir="/tmp")  # short, for the limit on socket paths
    gcs, port, client, agent, agent_grpc, metrics, env_agent, node, objects, *others = free_ports(11)
    env = environment() | {
        "HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_JOB_STOP_WAIT_TIME_S": "30", "RAY_USAGE_STATS_ENABLED": "0",
        # Keeps it on the loopback interface, which --node-ip-address does not.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_prestart_worker_first_driver": "0",
        "RAY_metrics_report_interval_ms": "200",
        "AUTOSCALER_METRIC_PORT": str(others[0]), "DASHBOARD_METRIC_PORT": str(others[1]),
    }  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    subprocess.run([*RAY, "get-auth-token", "--generate"], env=env, check=True, capture_output=True, timeout=PATIENCE_S)
    started = subprocess.Popen(
        [
            *RAY, "start", "--head", "--block", f"--port={gcs}",
            f"--include-dashboard={str(dashboard).lower()}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={port}",
            f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={agent_grpc}", f"--metrics-export-port={metrics}",
            f"--runtime-env-agent-port={env_agent}", f"--node-manager-port={node}", f"--object-manager-port={objects}",
            "--num-cpus=2", f"--object-store-memory={128 * 2**20}", f"--temp-dir={folder}",
        ],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    process = psutil.Process(started.pid)
    token = (home / ".ray" / "auth_token").read_text().strip()
    one = Head(
        process, f"127.0.0.1:{gcs}", url, f"http://127.0.0.1:{metrics}/metrics", token, env | {"RAY_ADDRESS": url}
    )

    def up() -> bool:
        assert started.poll() is None, started.communicate()[0]
        with contextlib.suppress(OSError):
            if dashboard:
                return isinstance(one.info(""), list)
            with socket.create_connection(("127.0.0.1", gcs), 1):
                return "raylet" in {child.name() for child in process.children(recursive=True)}
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
