"""A Ray cluster of two hosts, which are network namespaces: a gang across them, and what becomes of its shot when the
link between them loses every packet. Needs root."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from tests.helpers import forked_command
from tests.helpers.command import COMMAND, PATIENCE_S, environment, saved_steps, steps, wait_for
from tests.helpers.repository import REPOSITORY

PORT = 6379
OBJECT_STORE_BYTES = 128 * 2**20
STEPS = 40
NAME = "astronaut/beach-t01"
SHOT = (
    "--only", "astronaut/beach", "--save-every", "0s",
    "--set", f"sampling.num_inference_steps={STEPS}",
)  # fmt: skip

PATIENT = {"RAY_health_check_failure_threshold": "30", "RAY_prestart_worker_first_driver": "0"}
"""Ray takes a silent host for dead after minutes only, not after one: by then the driver must have done its work."""

# Takes three quarters of each host's one CPU, so that only one rank, which takes a quarter, has room there: Ray would
# pack both onto one host. Placement groups hold resources without any process.
HOLDER = """
import logging, signal, sys, time
import ray
from ray.util.placement_group import placement_group, remove_placement_group
address, *hosts = sys.argv[1:]
signal.alarm(600)
ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
while not all("node:" + host in ray.cluster_resources() for host in hosts):
    time.sleep(0.2)
held = {host: placement_group([{"CPU": 0.75, "node:" + host: 0.001}]) for host in hosts}
ray.get([group.ready() for group in held.values()])
signal.alarm(0)
print("held", flush=True)
for line in sys.stdin:
    remove_placement_group(held.pop(line.strip()))
    print("released", flush=True)
"""


class Unavailable(Exception):
    """This machine has no network namespaces for us."""


class Host:
    """A network namespace, and a host name for what is started in it."""

    def __init__(self, letter: str, number: int):
        self.name = f"lynx-{os.getpid()}-{letter}"
        self.address = f"10.213.0.{number}"  # seen in the two namespaces alone, so other test runs may have it too
        self.hardware = f"02:00:00:00:00:0{number}"

    def command(self, *arguments: str) -> list[str]:
        named = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name)
        return ["ip", "netns", "exec", self.name, *named, *arguments]

    def kill(self, children: list[subprocess.Popen[str]]) -> None:
        """Ends every process in it, and itself."""
        for _ in range(100):  # Ray may start a process while others are being ended
            pids = _ip("netns", "pids", self.name).split()
            if not pids:
                break
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            for child in children:
                child.poll()  # or it stays in the list
            time.sleep(0.1)
        _ip("netns", "del", self.name)


class Hosts:
    """``a``, the head and the driver's, ``b``, and the link between them."""

    LINK = "lynx"

    def __init__(self) -> None:
        self.a, self.b = self.both = Host("a", 1), Host("b", 2)
        self.head = f"{self.a.address}:{PORT}"
        self._children: list[subprocess.Popen[str]] = []
        self._folders: list[str] = []

    def make_link(self) -> None:
        """Raises Unavailable where it cannot."""
        for host in self.both:
            _ip("netns", "add", host.name)
        a, b = self.both
        _ip(
            "link", "add", self.LINK, "netns", a.name, "address", a.hardware, "type", "veth",
            "peer", "name", self.LINK, "netns", b.name, "address", b.hardware,
        )  # fmt: skip
        for host in self.both:
            _ip("-n", host.name, "link", "set", "lo", "up")
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", self.LINK)
            _ip("-n", host.name, "link", "set", self.LINK, "up")
            if (run := subprocess.run(host.command("true"), capture_output=True, text=True, check=False)).returncode:
                raise Unavailable(run.stderr.strip())
        self.mend()

    def start_ray(self) -> None:
        self._start_node(self.a, "--head", "--port", str(PORT), "--include-dashboard", "false")
        wait_for(self._head_listens, "the head starting")
        self._start_node(self.b, "--address", self.head)
        self._holder = self.start(
            self.a, sys.executable, "-c", HOLDER, self.head, *(host.address for host in self.both),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._holder_says("held")

    def _start_node(self, host: Host, *arguments: str) -> None:
        # A folder of its own, short for the socket path limit.
        self._folders.append(tempfile.mkdtemp(prefix="lynx-host-", dir="/tmp"))
        self.start(
            host, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats",
            "--node-ip-address", host.address, "--num-cpus", "1", "--num-gpus", "0",
            "--object-store-memory", str(OBJECT_STORE_BYTES), "--temp-dir", self._folders[-1], *arguments,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def _head_listens(self) -> bool:
        probe = f"import socket; socket.create_connection(({self.a.address!r}, {PORT}), 1)"
        command = self.a.command(sys.executable, "-c", probe)
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def start(self, host: Host, *command: str, **options: Any) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            host.command(*command), env=environment() | PATIENT, text=True, start_new_session=True, **options
        )  # fmt: skip
        self._children.append(child)
        return child

    def release(self, host: Host) -> None:
        """Makes room for more ranks on it."""
        assert self._holder.stdin is not None
        self._holder.stdin.write(f"{host.address}\n")
        self._holder.stdin.flush()
        self._holder_says("released")

    def _holder_says(self, word: str) -> None:
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == f"{word}\n"

    def cut(self) -> None:
        """Loses every frame from now on without any sign: no carrier lost, no reset, no host unreachable."""
        self._send_to("02:00:00:00:00:ff", "02:00:00:00:00:ff")

    def mend(self) -> None:
        self._send_to(self.b.hardware, self.a.hardware)

    def _send_to(self, *hardware: str) -> None:
        for host, other, where in zip(self.both, reversed(self.both), hardware, strict=True):
            entry = (other.address, "lladdr", where, "nud", "permanent", "dev", self.LINK)
            _ip("-n", host.name, "neigh", "replace", *entry)

    def end(self) -> None:
        for host in self.both:
            with contextlib.suppress(Unavailable):  # not even made
                host.kill(self._children)
        for child in self._children:
            child.kill()
            child.communicate()
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)


def _ip(*arguments: str) -> str:
    try:
        run = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise Unavailable("there is no ip command") from None
    if run.returncode:
        raise Unavailable(f"ip {' '.join(arguments)}: {run.stderr.strip()}")
    return run.stdout


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    hosts = Hosts()
    try:
        try:
            hosts.make_link()
        except Unavailable as error:
            pytest.skip(f"no network namespaces here: {error}")
        hosts.start_ray()
        yield hosts
    finally:
        hosts.end()


@pytest.fixture(scope="module")
def expected(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The shot's latents, undisturbed, of two ranks on this machine."""
    folder = tmp_path_factory.mktemp("one-host")
    shutil.copytree(REPOSITORY / "manifests", folder / "manifests")
    run = forked_command.render(folder / "manifests" / "demo.yaml", *SHOT, cwd=folder)
    assert run.returncode == 0, run.stdout + run.stderr
    return (folder / "renders" / "demo" / f"{NAME}.latents.safetensors").read_bytes()


class Run:
    """A driver on the first host.

    Args:
        output: its output folder.
        folder: its working folder.
    """

    def __init__(self, hosts: Hosts, campaign: Path, output: Path, folder: Path, *arguments: str):
        self.output = output
        self._said = folder / "said"
        with self._said.open("w") as file:
            self._driver = hosts.start(
                hosts.a, *COMMAND, str(campaign), *SHOT, "--set", f"output={output}",
                "--address", hosts.head, *arguments,
                cwd=folder, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self._said.read_text()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Waits, as long as the driver lives."""

        def holds() -> bool:
            assert self._driver.poll() is None, self.said
            return condition()

        wait_for(holds, what)

    def ends(self) -> None:
        assert self._driver.wait(timeout=PATIENCE_S) == 0, self.said

    def latents(self) -> bytes:
        return (self.output / f"{NAME}.latents.safetensors").read_bytes()

    def sidecar(self) -> dict[str, Any]:
        return json.loads((self.output / f"{NAME}.json").read_text())

    def events(self) -> list[str]:
        return [
            json.loads(line)["event"] for line in (self.output / ".lynx" / "journal.jsonl").read_text().splitlines()
        ]


def difference(latents: bytes, expected: bytes) -> float:
    """Of the norms, relative."""
    made, whole = load(latents)["latents"], load(expected)["latents"]
    return float(torch.linalg.vector_norm(made - whole) / torch.linalg.vector_norm(whole))


@pytest.mark.parametrize("room", [False, True], ids=["until the link is back", "on one host"])
def test_a_cut_link_costs_an_attempt_and_no_shot(
    hosts: Hosts, expected: bytes, campaign: Path, tmp_path: Path, fast_disk: Path, room: bool
) -> None:
    """The gang has a rank on each host. The retry resumes after the saved step.

    It runs on the driver's host if there is room. Otherwise it runs on both hosts, when the link is back.
    """
    # The default is ring attention between the hosts. With Ulysses, the retry on one host has the same layout.
    run = Run(hosts, campaign, fast_disk, tmp_path, "--hung-after", "15s", *(("--ulysses", "2") if room else ()))
    run.until(lambda: saved_steps(run.output) >= 5, "a resume state")
    if room:
        hosts.release(hosts.a)
    hosts.cut()
    cut = time.monotonic()
    run.until(lambda: "hung, to be tried again" in run.said, "the retry")
    assert time.monotonic() - cut < 120  # 17 s, and what a busy machine adds
    saved = saved_steps(run.output)
    assert 5 <= saved <= steps(run.output, 1)[-1] < STEPS
    if not room:
        time.sleep(5)
        assert not steps(run.output, 2)
        hosts.mend()
    run.ends()
    assert steps(run.output, 2) == list(range(saved + 1, STEPS + 1))
    events = [event for event in run.events() if event != "gang_started"]
    assert events == ["run_started", "attempt", "retry", "attempt", "done", "run_ended"]
    assert {rank["host"] for rank in run.sidecar()["ranks"]} == {host.name for host in hosts.both[: 2 - room]}
    if room:
        assert difference(run.latents(), expected) <= 1e-6  # a rank has more threads on a host of its own
    else:
        assert "1 ranks): ring attention between machines, Ulysses within each" in run.said
        assert run.sidecar()["layout"] == {"guidance": 1, "ring": 2, "ulysses": 1}
        assert difference(run.latents(), expected) <= 1e-5
