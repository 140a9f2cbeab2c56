"""The files in cluster/ are sound, as far as can be told without a cluster."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from lynx_parallel.cli.entry import command_group
from tests.helpers.documents import blocks
from tests.helpers.repository import REPOSITORY

CLUSTER = REPOSITORY / "cluster"
SLURM = CLUSTER / "slurm.sh"
PAGES = ("cluster.md", "kubernetes.md", "slurm.md")
"""Pages of docs/how-to/ that name the files."""


def rayjob() -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())


def with_rdma(name: str) -> dict[str, Any]:
    """The YAML file with the lines marked RDMA uncommented."""
    text, count = re.subn(r"^( *)# (.+) +# RDMA\b.*$", r"\1\2", (CLUSTER / name).read_text(), flags=re.M)
    assert count == 2, f"{name}: {count} lines marked RDMA"
    return yaml.safe_load(text)


def constraint(package: str) -> str:
    (version,) = re.findall(rf"^{package}==(.+)$", (REPOSITORY / "constraints.txt").read_text(), re.M)
    return version


# What Ray is told everywhere


def test_the_token_is_asked_for_everywhere() -> None:
    assert rayjob()["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert re.search(r"^export .*\bRAY_AUTH_MODE=token\b", SLURM.read_text(), re.M)
    launcher = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())
    assert "--env=RAY_AUTH_MODE=token" in launcher["docker"]["run_options"]
    for path in CLUSTER.iterdir():
        assert not re.search(r"AUTH_MODE\W+(?!token\b)\w", path.read_text()), path.name


def test_a_stopped_job_has_time_to_save() -> None:
    """Ray kills after 3 s otherwise; ``driver.STOP_WITHIN_S`` is spent twice at worst."""
    launcher = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())
    said = [*launcher["docker"]["run_options"], *(rest for name, rest in dockerfile() if name == "ENV")]
    seconds = re.findall(r"RAY_JOB_STOP_WAIT_TIME_S=(\d+)", " ".join(said))
    seconds += [
        one["value"]
        for group in ray_groups()
        for one in group["template"]["spec"]["containers"][0]["env"]
        if one["name"] == "RAY_JOB_STOP_WAIT_TIME_S"
    ]
    assert len(seconds) == 2 + len(ray_groups())
    assert all(int(one) >= 30 for one in seconds)


# The command lines


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """(where, arguments of lynx-render) of every command line in cluster/."""
    yield "rayjob.yaml", shlex.split(rayjob()["spec"]["entrypoint"])[1:]
    for line in SLURM.read_text().splitlines():
        if line.startswith('lynx-render "$@"'):
            words = shlex.split(line.removesuffix("&").replace('"$@"', "campaign.yaml").replace('"$head"', "host:6379"))
            yield "slurm.sh", words[1:]
    for page in PAGES:
        for block in blocks(f"docs/how-to/{page}"):
            for line in block.commands:
                words = shlex.split(line, comments=True)
                if "build" in words:
                    continue
                for program in ("lynx-render", "cluster/slurm.sh", "lynx-parallel:latest"):
                    if program in words:
                        yield f"{page}: {line}", words[words.index(program) + 1 :]


def test_every_command_line_parses() -> None:
    group = command_group()
    lines = list(command_lines())
    assert len(lines) >= 7
    assert {where.split(":")[0] for where, _ in lines} == {"rayjob.yaml", "slurm.sh", *PAGES}
    for where, arguments in lines:
        name = arguments[0] if arguments[0] in group.commands else "render"
        rest = arguments[1:] if name == arguments[0] else arguments
        try:
            context = group.commands[name].make_context(name, list(rest))
        except Exception as error:
            pytest.fail(f"{where}: {error}")
        assert all(manifest.endswith(".yaml") for manifest in context.params["manifest"])


# Ray's launcher


def test_the_launcher_file_is_valid() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    written = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())
    validate_config(prepare_config(written))

    assert written["min_workers"] == written["max_workers"] == len(written["provider"]["worker_ips"])
    options = written["docker"]["run_options"]
    assert "--entrypoint=env" in options  # Ray appends `bash`, which is no manifest
    for name in ("RAY_USAGE_STATS_ENABLED=0", "LYNX_CACHE=/data/cache"):
        assert f"--env={name}" in options
    (mount,) = [option for option in options if option.startswith("--volume=")]
    assert mount.endswith(":/data")


def test_the_launcher_s_rdma_lines_give_the_container_the_devices() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    made = with_rdma("ray-cluster.yaml")
    validate_config(prepare_config(made))
    written = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())
    added = set(made["docker"]["run_options"]) - set(written["docker"]["run_options"])
    assert added == {"--device=/dev/infiniband", "--ulimit=memlock=-1"}


def test_the_launcher_s_ray_commands_have_options_ray_knows() -> None:
    from ray.scripts.scripts import start

    known = {name for parameter in start.params for name in parameter.opts}
    written = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())
    used = re.findall(r"--[a-z-]+", " ".join(written["head_start_ray_commands"] + written["worker_start_ray_commands"]))
    used += [f"--{key}" for group in ray_groups() for key in group["rayStartParams"]]
    assert len(used) > 5
    assert set(used) <= known


# KubeRay

CONTAINERS = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["name", "image", "resources", "env", "volumeMounts"],
        "additionalProperties": False,
        "properties": {
            "name": {"pattern": "^[a-z0-9-]+$"},
            "image": {"type": "string"},
            "env": {
                "items": {
                    "required": ["name", "value"],
                    "additionalProperties": False,
                    "properties": {"name": {"type": "string"}, "value": {"type": "string"}},
                }
            },
            "resources": {
                "type": "object",
                "required": ["limits", "requests"],
                "additionalProperties": False,
                "patternProperties": {
                    "limits|requests": {
                        "required": ["cpu", "memory"],
                        "additionalProperties": False,
                        "properties": {
                            name: {"type": "string", "pattern": pattern}
                            for name, pattern in (
                                ("cpu", "^\\d+$"),
                                ("memory", "^\\d+Gi$"),
                                ("nvidia.com/gpu", "^\\d+$"),
                                ("rdma/hca", "^\\d+$"),
                            )
                        },
                    }
                },
            },
            "securityContext": {
                "additionalProperties": False,
                "properties": {
                    "capabilities": {
                        "additionalProperties": False,
                        "properties": {"add": {"items": {"const": "IPC_LOCK"}}},
                    }
                },
            },
            "volumeMounts": {"items": {"required": ["name", "mountPath"]}},
        },
    },
}
GROUP = {
    "rayStartParams": {"type": "object", "additionalProperties": {"type": "string"}},
    "template": {
        "type": "object",
        "required": ["spec"],
        "additionalProperties": False,
        "properties": {
            "spec": {
                "type": "object",
                "required": ["containers", "volumes"],
                "additionalProperties": False,
                "properties": {
                    "containers": CONTAINERS,
                    "volumes": {"type": "array", "items": {"required": ["name"], "minProperties": 2}},
                    "securityContext": {"type": "object"},
                    "terminationGracePeriodSeconds": {"type": "integer"},
                },
            }
        },
    },
}
COUNT = {"type": "integer", "minimum": 0}
RAYJOB = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": {"type": "object", "minProperties": 1},
        "spec": {
            "type": "object",
            "required": ["entrypoint", "rayClusterSpec"],
            "additionalProperties": False,
            "properties": {
                "entrypoint": {"type": "string"},
                "backoffLimit": COUNT,
                "shutdownAfterJobFinishes": {"type": "boolean"},
                "ttlSecondsAfterFinished": COUNT,
                "rayClusterSpec": {
                    "type": "object",
                    "required": ["headGroupSpec", "workerGroupSpecs"],
                    "additionalProperties": False,
                    "properties": {
                        "rayVersion": {"type": "string"},
                        "authOptions": {
                            "additionalProperties": False,
                            "properties": {"mode": {"enum": ["disabled", "token"]}},
                        },
                        "headGroupSpec": {
                            "type": "object",
                            "required": ["template"],
                            "additionalProperties": False,
                            "properties": GROUP,
                        },
                        "workerGroupSpecs": {
                            "type": "array",
                            "minItems": 1,
                            "items": {
                                "type": "object",
                                "required": ["groupName", "replicas", "minReplicas", "maxReplicas", "template"],
                                "additionalProperties": False,
                                "properties": GROUP
                                | {"groupName": {"type": "string"}}
                                | dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), COUNT),
                            },
                        },
                    },
                },
            },
        },
    },
}
"""The fields of KubeRay's RayJob that are used, and no others: a misspelt one would be dropped without a word."""


def ray_groups() -> list[dict[str, Any]]:
    cluster = rayjob()["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_the_rayjob_has_the_shape_of_one() -> None:
    jsonschema.validate(rayjob(), RAYJOB)


def test_the_rayjob_shares_its_folder_and_is_not_repeated() -> None:
    spec = rayjob()["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] == 0
    assert spec["rayClusterSpec"]["rayVersion"] == constraint("ray")
    for group in ray_groups():
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        env = {one["name"]: one["value"] for one in container["env"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/data"]["persistentVolumeClaim"] == {"claimName": "lynx-data"}
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        for name in ("LYNX_CACHE", "HF_HOME"):
            assert env[name].startswith("/data/")
    assert all(
        "nvidia.com/gpu" in one["template"]["spec"]["containers"][0]["resources"]["limits"] for one in ray_groups()[1:]
    )


def test_the_rayjob_s_rdma_lines_ask_for_an_adapter() -> None:
    made = with_rdma("rayjob.yaml")
    jsonschema.validate(made, RAYJOB)
    (group,) = made["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert container["securityContext"] == {"capabilities": {"add": ["IPC_LOCK"]}}
    # Kubernetes refuses an extended resource whose request differs from its limit.
    assert container["resources"]["limits"]["rdma/hca"] == container["resources"]["requests"]["rdma/hca"] == "1"
    del container["securityContext"], container["resources"]["limits"]["rdma/hca"]
    assert made == rayjob(), "the RDMA lines change something else"


# Docker

INSTRUCTIONS = ["ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "LABEL", "RUN", "USER", "VOLUME", "WORKDIR"]


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, its arguments), comments and line continuations gone."""
    text = (CLUSTER / "Dockerfile").read_text()
    text = "".join(line for line in text.splitlines(keepends=True) if not line.lstrip().startswith("#"))
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split()[0], " ".join(line.split()[1:])) for line in lines]


def copied() -> list[str]:
    return [source for name, rest in dockerfile() if name == "COPY" for source in rest.split()[:-1]]


def test_the_dockerfile_reads() -> None:
    read = dockerfile()
    assert {name for name, _ in read} <= set(INSTRUCTIONS)
    assert next(name for name, _ in read if name != "ARG") == "FROM"
    assert [rest for name, rest in read if name == "ENTRYPOINT"] == ['["lynx-render"]']
    users = [rest for name, rest in read if name == "USER"]
    assert users
    assert users[-1] not in ("root", "0")
    assert ("VOLUME", '["/data"]') in read
    installs = [rest for name, rest in read if name == "RUN" and "pip install" in rest]
    assert installs
    assert all("-c constraints.txt" in rest for rest in installs)
    for source in copied():
        assert (REPOSITORY / source).exists(), source


def test_the_image_has_rdma_libraries_and_a_compiler() -> None:
    (installs,) = [rest for name, rest in dockerfile() if name == "RUN" and "apt-get install" in rest]
    packages = set(installs.partition("apt-get install")[2].partition("&&")[0].split())
    # NCCL loads libibverbs.so.1 and, through it, the adapter's provider. Triton calls gcc and needs the C headers.
    assert {"libibverbs1", "ibverbs-providers", "librdmacm1", "gcc", "libc6-dev"} <= packages


def test_docker_is_sent_what_is_copied() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().split("\n")
    assert not {source.removeprefix("./") for source in copied()} & set(ignored)
    assert {".git", ".venv", "renders"} <= set(ignored)


@pytest.mark.slow
def test_what_is_copied_makes_a_wheel(tmp_path: Path) -> None:
    for source in copied():
        here, there = REPOSITORY / source, tmp_path / "image" / source
        there.parent.mkdir(parents=True, exist_ok=True)
        if here.is_dir():
            shutil.copytree(here, there, ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
        else:
            shutil.copy(here, there)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "wheel", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-build-isolation", "-w", tmp_path / "dist", tmp_path / "image"], check=True)
    assert list((tmp_path / "dist").glob("lynx_parallel-*.whl"))


# Slurm

LOG = 'echo "$(basename "$0") $*" >> "$STUB_LOG"\n'
STUBS = {
    # Runs what it is given on this machine, in its own process, as srun's signals would reach it.
    "srun": LOG + 'while [[ $1 == -* ]]; do shift; done\nexec "$@"\n',
    "scontrol": LOG + 'if [[ $1 == show ]]; then printf "node%s\\n" $STUB_NODES; else exit "${STUB_REQUEUE:-0}"; fi\n',
    "ray": LOG
    + """case $1 in
start) [[ -z ${STUB_RAY_DIES:-} ]] || exit 1; exec sleep 60 ;;
health-check) [[ -z ${STUB_RAY_DOWN:-} ]] && grep -q "^ray start --head" "$STUB_LOG" ;;
status) grep -q "^ray start --address" "$STUB_LOG" || exit 1
  echo Active:; for node in ${STUB_JOINED-$STUB_NODES}; do echo " 1 node_$node"; done; echo Pending: ;;
esac
""",
    "lynx-render": LOG.join(
        [
            """trap 'echo USR1 >> "$STUB_LOG"; sleep 0.5; exit "${STUB_USR1:-75}"' USR1
trap 'echo TERM >> "$STUB_LOG"; exit 143' TERM
""",
            """if [[ -n ${STUB_LONG:-} ]]; then for _ in {1..300}; do sleep 0.1; done; fi
exit "${STUB_CODE:-0}"
""",
        ]
    ),
}


class Slurm:
    """slurm.sh with stand-ins for every program it starts."""

    def __init__(self, folder: Path):
        self.log = folder / "log"
        self.folder = folder / "bin"
        self.folder.mkdir()
        for name, body in STUBS.items():
            (self.folder / name).write_text(f"#!/usr/bin/env bash\n{body}")
            (self.folder / name).chmod(0o755)

    def start(self, *arguments: str, **stubs: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "LYNX_"))}
        environment |= {
            "PATH": f"{self.folder}:{os.environ['PATH']}", "STUB_LOG": str(self.log), "STUB_NODES": "a b",
            "SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node[a-b]", "SLURM_CPUS_PER_TASK": "2",
            "LYNX_NODE_IP": "192.0.2.10", "LYNX_START_SECONDS": "20", "LYNX_POLL_SECONDS": "0.1",
        }  # fmt: skip
        return subprocess.Popen(
            ["bash", SLURM, *arguments], env=environment | stubs, text=True, stderr=subprocess.PIPE, cwd=self.folder
        )

    def run(self, *arguments: str, **stubs: str) -> tuple[int, str]:
        process = self.start(*arguments, **stubs)
        _, said = process.communicate(timeout=60)
        return process.returncode, said

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def wait_for(self, call: str) -> None:
        until = time.monotonic() + 30
        while not any(line.startswith(call) for line in self.calls()):
            assert time.monotonic() < until, self.calls()
            time.sleep(0.05)


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path)


def test_the_slurm_script_is_bash() -> None:
    subprocess.run(["bash", "-n", SLURM], check=True)
    head = SLURM.read_text().split("set -uo pipefail")[0]
    assert "#SBATCH --signal=B:USR1@300\n" in head
    assert "#SBATCH --requeue\n" in head
    assert "0.0.0.0" not in SLURM.read_text()


def test_slurm_s_cluster_and_command(slurm: Slurm) -> None:
    code, said = slurm.run("campaign.yaml", "--only", "ada/two words*")
    assert code == 0, said
    calls = slurm.calls()
    # Both run in the background: either may write its line first.
    head, workers = sorted((call for call in calls if call.startswith("srun")), key=lambda call: "--head" not in call)
    assert "--nodelist=nodea ray start --head --node-ip-address=192.0.2.10 --port=24711 " in head
    assert "--nodes=1 --ntasks=1" in head
    assert "--exclude=nodea ray start --address=192.0.2.10:24711 " in workers
    assert "lynx-render campaign.yaml --only ada/two words* --address 192.0.2.10:24711" in calls
    assert not any("requeue" in call for call in calls)


def test_one_node_needs_no_workers(slurm: Slurm) -> None:
    assert slurm.run("campaign.yaml", STUB_NODES="a")[0] == 0
    assert len([call for call in slurm.calls() if call.startswith("srun")]) == 1


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_exit_codes_pass_through(slurm: Slurm, code: int) -> None:
    assert slurm.run("campaign.yaml", STUB_CODE=str(code))[0] == code
    assert not any("requeue" in call for call in slurm.calls())


def test_stopped_early_is_queued_again(slurm: Slurm) -> None:
    code, said = slurm.run("campaign.yaml", STUB_CODE="75")
    assert code == 75
    assert "scontrol requeue 4711" in slurm.calls()
    assert "goes back to the queue" in said


def test_a_requeue_that_fails_says_so(slurm: Slurm) -> None:
    code, said = slurm.run("campaign.yaml", STUB_CODE="75", STUB_REQUEUE="1")
    assert code == 75
    assert "submit it again" in said


@pytest.mark.parametrize(("name", "code"), [("USR1", 75), ("TERM", 143)])
def test_signals_reach_lynx_render(slurm: Slurm, name: str, code: int) -> None:
    process = slurm.start("campaign.yaml", STUB_LONG="1")
    slurm.wait_for("lynx-render")
    process.send_signal(signal.Signals[f"SIG{name}"])
    process.communicate(timeout=60)
    assert process.returncode == code
    assert name in slurm.calls()
    assert ("scontrol requeue 4711" in slurm.calls()) == (name == "USR1")


def test_lynx_render_is_waited_for_after_a_signal(slurm: Slurm) -> None:
    """USR1 during the last shot: all done all the same, and nothing to queue."""
    process = slurm.start("campaign.yaml", STUB_LONG="1", STUB_USR1="0")
    slurm.wait_for("lynx-render")
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert "scontrol requeue 4711" not in slurm.calls()


def test_usr1_before_lynx_render_runs(slurm: Slurm) -> None:
    process = slurm.start("campaign.yaml", STUB_RAY_DOWN="1")
    slurm.wait_for("ray health-check")
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert "scontrol requeue 4711" in slurm.calls()
    assert not any(call.startswith("lynx-render") for call in slurm.calls())


@pytest.mark.parametrize(
    ("stubs", "said"),
    [
        ({"STUB_RAY_DOWN": "1", "LYNX_START_SECONDS": "1"}, "the head on nodea not there after 1 s"),
        ({"STUB_RAY_DOWN": "1", "STUB_RAY_DIES": "1"}, "Ray ended while waiting for the head on nodea"),
        ({"STUB_JOINED": "a", "LYNX_START_SECONDS": "1"}, "all 2 nodes not there after 1 s"),
        ({"SLURM_JOB_NODELIST": ""}, "start it with sbatch"),
        ({"LYNX_VENV": "/nowhere"}, "/nowhere: no virtual environment"),
    ],
)
def test_a_cluster_that_does_not_come_up(slurm: Slurm, stubs: dict[str, str], said: str) -> None:
    code, heard = slurm.run("campaign.yaml", **stubs)
    assert code == 3
    assert said in heard
    assert not any(call.startswith("lynx-render") for call in slurm.calls())


def test_nothing_is_left_running(slurm: Slurm) -> None:
    import psutil

    slurm.run("campaign.yaml")
    left = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("STUB_LOG") == str(slurm.log):
                left.append(process.name())
        except psutil.Error:
            continue
    assert left == []


def test_no_manifest_is_bad_input(slurm: Slurm) -> None:
    assert slurm.run()[0] == 2
