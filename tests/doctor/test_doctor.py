"""``lynx-render doctor``: the whole command on this CPU, broken children, and GPUs simulated through pure functions."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import psutil
import pytest
import torch
from typer.testing import CliRunner

from lynx_parallel.cli import app
from lynx_parallel.doctor import children, device, machine
from lynx_parallel.doctor.children import Answer
from lynx_parallel.doctor.report import (
    Gpu,
    Kernels,
    Report,
    check_lines,
    gpu_lines,
    kernel_lines,
    last_line,
    machine_lines,
    version_lines,
)
from lynx_parallel.doctor.weights import find_all
from lynx_parallel.rank.messages import Check
from tests.helpers.campaigns import LITE
from tests.helpers.command import COMMAND, wait_for
from tests.helpers.fork_server import fast_children
from tests.helpers.light_command import light

TOPOLOGY = """\
\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\tSYS\tPXB\t0-31\t0\t\tN/A
GPU1\tNV18\t X \tSYS\tNODE\t0-31\t0\t\tN/A
GPU2\tSYS\tSYS\t X \tSYS\t32-63\t1\t\tN/A
NIC0\tPXB\tNODE\tSYS\t X \t\t\t\t

Legend:

  NV#  = Connection traversing a bonded set of # NVLinks
"""


def answer(**results: list[Any]) -> Answer:
    return Answer(dict(results))


def good(name: str) -> dict[str, Any]:
    return {"name": name, "ok": True, "seconds": 0.1, "detail": "fine", "remedy": ""}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> dict[str, Answer]:
    """Stands in for the child processes: their answers by question, to be changed by a test."""
    answers = {
        "overview cpu": answer(versions=[{"torch": "2.99"}]),
        "examine cpu": answer(check=[good("memory")]),
        "overview cuda": answer(versions=[{"torch": "2.99"}], error=["AssertionError: Torch not compiled with CUDA"]),
    }

    def ask(what: str, device: str, *_: object, heard: Any = lambda kind, value: None, **options: object) -> Answer:
        found = answers[f"{what} {device}"]
        for kind, values in found.results.items():
            for value in values:
                heard(kind, value)
        return found

    monkeypatch.setattr(children, "ask", ask)
    return answers


def doctor(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
    """Exit code and report, in this process."""
    run = CliRunner().invoke(app, ["doctor", "--json", *map(str, arguments)], catch_exceptions=False)
    return run.exit_code, json.loads(run.stdout)


def test_a_healthy_machine(tmp_path: Path, demo: Path) -> None:
    with fast_children():
        run = light("doctor", "demo-tiny", "--device", "cpu", cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    for name in ("torch", "diffusers", "xfuser", "ray", "ffmpeg", "Python", "NVIDIA driver"):
        assert any(line.startswith(f"  {name:15}") for line in lines), name
    assert f"  torch          {torch.__version__}" in lines
    assert "  bfloat16       auto takes sdpa on cpu" in lines
    assert sum(line.startswith("  ok    cpu ") for line in lines) == 5
    assert any(line.startswith("  ok    adapter ref: demo:full") for line in lines)
    assert lines[-1] == "All checks passed."
    assert max(len(line) for line in lines if "/" not in line) <= 80
    assert list(tmp_path.iterdir()) == []


def test_json_of_a_healthy_machine(quick: dict[str, Answer]) -> None:
    code, report = doctor()
    assert (code, report["ok"], report["failures"]) == (0, True, 0)
    assert report["versions"]["torch"] == "2.99"
    assert {"lynx-parallel", "Python", "diffusers", "xfuser", "ray", "ffmpeg", "NVIDIA driver"} <= set(
        report["versions"]
    )
    assert [disk["what"] for disk in report["disks"]] == ["working folder", "cache folder", "hub cache"]
    assert list(report["checks"]) == ["machine", "cpu"]


def test_quiet_and_json(tmp_path: Path, quick: dict[str, Answer]) -> None:
    run = CliRunner().invoke(app, ["doctor", "--quiet"], catch_exceptions=False)
    assert (run.exit_code, run.stdout, run.stderr) == (0, "All checks passed.\n", "")
    quick["examine cpu"].results["check"].append({**good("decode"), "ok": False, "remedy": "Try another."})
    run = CliRunner().invoke(app, ["doctor", "--quiet"], catch_exceptions=False)
    assert (run.exit_code, run.stdout.splitlines()) == (
        3,
        ["  FAIL  cpu decode: fine", "        → Try another.", "1 check failed."],
    )
    run = CliRunner().invoke(app, ["doctor", "--json"], catch_exceptions=False)
    assert run.stderr.startswith("Machine "), "progress goes to stderr"
    assert run.stderr.endswith("1 check failed.\n")
    report = json.loads(run.stdout)
    assert (report["exit_code"], report["failures"]) == (3, 1)


HANGING_TORCH = """\
import sys, time
if "examine" in sys.argv:
    time.sleep(600)
raise OSError("no such library")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "lib" / "torch").mkdir(parents=True)
    (tmp_path / "lib" / "torch" / "__init__.py").write_text(HANGING_TORCH)
    here = tmp_path / "here"
    here.mkdir()
    path = f"{tmp_path / 'lib'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    process = subprocess.Popen(
        [*COMMAND, "doctor", "--device", "cpu"], cwd=here, env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    lines = iter(process.stdout)
    assert next(lines).startswith("Machine "), "before torch is imported"
    assert any("machine process (import torch): OSError: no such library" in line for line in lines)
    wait_for(lambda: any(here.glob(".lynx-doctor-*")), "the examination")
    wait_for(lambda: psutil.Process(process.pid).children(), "the child process")
    [child] = psutil.Process(process.pid).children()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert list(here.iterdir()) == []
    assert not child.is_running()


def test_a_missing_adapter(tmp_path: Path, quick: dict[str, Answer]) -> None:
    (tmp_path / "mine.yaml").write_text(LITE.replace("id: demo:lite", "id: ./lost.safetensors"))
    code, report = doctor(tmp_path / "mine.yaml")
    assert code == 3
    (failed,) = [weight for weight in report["weights"] if not weight["ok"]]
    assert (failed["name"], failed["detail"]) == ("adapter id", f"missing: {tmp_path / 'lost.safetensors'}")
    assert failed["remedy"] == "Put the file there, or correct model.adapters.id."
    assert "lost.safetensors" in CliRunner().invoke(app, ["doctor", str(tmp_path / "mine.yaml")]).stdout


def test_a_wrong_pipeline_file_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(LITE.replace("dtype", "dtyp"))
    run = light("doctor", tmp_path / "wrong.yaml", cwd=tmp_path)
    assert (run.returncode, "model.dtyp: unknown key" in run.stderr) == (2, True)
    assert light("doctor", "lynx-ful", cwd=tmp_path).returncode == 2
    assert light("doctor", "--device", "tpu", cwd=tmp_path).returncode == 2


def test_cuda_that_is_missing(quick: dict[str, Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    code, report = doctor("--device", "cuda")
    assert (code, list(report["checks"])) == (3, ["machine"])  # nothing was tried on the CPU instead
    failed = report["checks"]["machine"][-1]
    assert (failed["name"], failed["ok"]) == ("CUDA", False)
    assert "Install a torch build with CUDA" in failed["remedy"]
    monkeypatch.setattr(machine, "nvidia_driver", lambda: ("580.65", 2))  # a driver and a torch that cannot use it
    assert doctor()[0] == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert doctor()[0] == 0


def test_a_torch_that_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import os\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    run = light("doctor", "--device", "cpu", "--json", cwd=tmp_path)
    assert run.returncode == 3, run.stderr
    report = json.loads(run.stdout)
    assert report["versions"]["torch"] is None
    failed = [check for checks in report["checks"].values() for check in checks if not check["ok"]]
    assert [check["name"] for check in failed] == ["process (import torch)", "process (import torch and diffusers)"]
    assert all(
        "crashed by signal SIGABRT" in check["detail"] and "torch/__init__.py" in check["detail"] for check in failed
    )


def test_a_torch_that_hangs_or_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch").mkdir()
    init = tmp_path / "torch" / "__init__.py"
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    init.write_text("import time\ntime.sleep(600)\n")
    hanging = children.ask("overview", "cpu", timeout=1).failure
    assert hanging is not None
    assert hanging.detail.startswith("no answer after")
    init.write_text("raise OSError('libcudart.so.13: cannot open shared object file: No such file or directory')\n")
    failing = children.ask("overview", "cpu").failure
    assert failing is not None
    assert failing.detail.startswith("OSError: libcudart.so.13")
    assert failing.remedy == "A library is missing. Install the package again."


def test_a_killed_child_keeps_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    killed = children.ask("overview", "cpu")
    assert killed.results["doing"] == ["import torch"]
    assert killed.failure is not None
    assert (killed.failure.detail, "memory" in killed.failure.remedy) == ("killed", True)


def test_two_devices_in_one_group() -> None:
    with fast_children():
        links = children.ask_links(["cpu", "cpu"])
    for one in links:
        assert one.failure is None
        (check,) = one.checks()
        assert (check.name, check.ok) == ("collectives", True)
        assert "all_to_all over 2 ranks" in check.detail


def results_of(call: Any, *arguments: Any) -> dict[str, list[Any]]:
    stream = io.StringIO()
    call(device.Emitter(stream), *arguments)
    found: dict[str, list[Any]] = {}
    for kind, value in children._results(stream.getvalue() + '{"cut o'):
        found.setdefault(kind, []).append(value)
    return found


def test_gpus_as_torch_describes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="NVIDIA H100", uuid="aa-bb", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (70, 80))
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda a, b: a < b)
    found = results_of(device.overview, True)
    assert Gpu(**found["gpu"][1]) == Gpu(1, "NVIDIA H100", "GPU-aa-bb", 80, 70, "9.0")
    assert found["no_peer_access"] == [["1-0"]]

    def no_driver() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system.\nMore.")

    monkeypatch.setattr(torch.cuda, "init", no_driver)
    assert results_of(device.overview, True)["error"] == ["RuntimeError: Found no NVIDIA driver on your system."]
    assert "error" not in results_of(device.overview, False)


def test_a_kernel_that_does_not_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(q: Any, *_: Any) -> Any:
        raise ImportError("flash_attn_2_cuda.so: undefined symbol: _ZN3c10")

    monkeypatch.setattr(device, "_choose", lambda name, where, dtype: ("flash", broken))
    found = results_of(device.examine, "cpu", tmp_path)
    assert found["kernels"][0]["found"]["flash"].startswith("ImportError: flash_attn_2_cuda.so: undefined symbol")
    failed = {check["name"]: check["remedy"] for check in found["check"] if not check["ok"]}
    assert list(failed) == ["attention"]
    assert "--attention" in failed["attention"]


def test_links_and_driver_as_nvidia_smi_prints_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.parse_topology(TOPOLOGY) == {"NV18": ["0-1"], "SYS": ["0-2", "1-2"]}
    monkeypatch.setenv("PATH", "/nowhere")
    assert (machine.nvidia_driver(), machine.gpu_links()) == ((None, 0), {})
    (tmp_path / "topology").write_text(TOPOLOGY)
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        f"#!/bin/sh\ncase $1 in topo) /bin/cat {tmp_path}/topology;; *) echo 580.65.06; echo 580.65.06;; esac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (machine.nvidia_driver(), machine.gpu_links()["NV18"]) == (("580.65.06", 2), ["0-1"])


def test_an_ffmpeg_without_x265(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "ffmpeg"
    tool.write_text("#!/bin/sh\ncase $1 in -version) echo ffmpeg version 5.1;; *) echo ' V....D libx264  x';; esac\n")
    tool.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tool))
    version, check = machine.check_ffmpeg()
    assert (version, check.ok, check.detail) == ("5.1", False, f"no encoder libx265 in {tool}")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "lost"))
    version, check = machine.check_ffmpeg()
    assert (version, check.ok, "imageio-ffmpeg" in check.remedy) == (None, False, True)


def test_packages_and_shared_memory() -> None:
    assert machine.check_packages({"ray": "1", "flash-attn": None}).ok
    assert machine.check_packages({"ray": None}).detail == "missing: ray"
    assert machine.check_shm({"shm_free": 64e6}, gpus=1) is None
    small = machine.check_shm({"shm_free": 64e6}, gpus=2)
    assert small is not None
    assert (small.ok, "--shm-size" in small.remedy) == (False, True)


def test_a_base_with_missing_files(tmp_path: Path) -> None:
    pipeline = tmp_path / "mine.yaml"
    pipeline.write_text(LITE.replace("base: demo:tiny", "base: ./wan"))
    assert find_all(str(pipeline))[0].detail == "missing"
    for component in ("transformer", "text_encoder", "tokenizer", "vae"):
        (tmp_path / "wan" / component).mkdir(parents=True)
        (tmp_path / "wan" / component / "config.json").write_text("{}")
    (tmp_path / "wan" / "vae" / "model.safetensors").write_bytes(b"x" * 100)
    shards = {"a": "1-of-2.safetensors", "b": "2-of-2.safetensors"}
    (tmp_path / "wan" / "transformer" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (tmp_path / "wan" / "transformer" / "1-of-2.safetensors").touch()
    base = find_all(str(pipeline))[0]
    assert (base.ok, base.bytes > 100) == (False, True)
    assert base.detail == "missing: transformer/2-of-2.safetensors, text_encoder/*.safetensors, scheduler"


def test_weights_in_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    missing = {weight.name: weight for weight in find_all("lynx-full")}
    assert list(missing) == [
        "base",
        "adapter resampler",
        "adapter id",
        "adapter ref",
        "face detector",
        "face recognizer",
    ]
    assert not any(weight.ok for weight in missing.values())
    assert missing["base"].remedy == "lynx-render fetch lynx-full downloads it."
    assert missing["face detector"].licence == "non-commercial research only"
    snapshot = tmp_path / "models--ByteDance--lynx" / "snapshots" / "abc"
    (snapshot / "lynx_full").mkdir(parents=True)
    (snapshot / "lynx_full" / "ip_layers.safetensors").write_bytes(b"x" * 1000)
    (tmp_path / "models--ByteDance--lynx" / "refs").mkdir()
    (tmp_path / "models--ByteDance--lynx" / "refs" / "main").write_text("abc")
    pack = tmp_path / "home" / ".insightface" / "models" / "buffalo_l"
    pack.mkdir(parents=True)
    (pack / "det.onnx").write_bytes(b"x" * 10)
    found = {weight.name: weight for weight in find_all("lynx-full") if weight.ok}
    assert {name: weight.bytes for name, weight in found.items()} == {"adapter id": 1000, "face detector": 10}
    assert found["adapter id"].licence == "Apache-2.0"


def test_two_gpus_as_text() -> None:
    report = Report(
        "node-7",
        {"torch": "2.13.0+cu130", "flash-attn": None},
        {"os": "Linux", "cores": 64, "memory_total": 4e11, "memory_free": 3e11, "shm_total": 2e11, "shm_free": 2e11},
        gpus=[Gpu(i, "NVIDIA H100 80GB HBM3", f"GPU-{i}", 85_000_000_000, 84_000_000_000, "9.0") for i in range(2)],
        links={"NV18": ["0-1"], "SYS": ["0-2"]},
        no_peer_access=["0-1", "1-0"],
        kernels=[
            Kernels(f"cuda:{i}", "bfloat16", "cudnn", {"flash": "not installed", "cudnn": "works"}) for i in (0, 1)
        ],
        checks={
            "cuda:0": [Check("memory", True, 0.1, "256 MiB allocated")],
            "cuda:1": [
                Check("memory", False, 0.1, "OutOfMemoryError: CUDA out of memory. " * 4, "End the others. " * 8)
            ],
        },
    )
    checks = [line for place, some in report.checks.items() for check in some for line in check_lines(place, check)]
    lines = [*machine_lines(report), *version_lines(report), *gpu_lines(report), *checks]
    lines += [*kernel_lines(report.kernels), last_line(report)]
    assert max(map(len, lines)) <= 80
    for line in (
        "  cuda:0         NVIDIA H100 80GB HBM3, 84.0 of 85.0 GB free, capability 9.0,",
        "  links          NVLink × 18: 0-1",
        "  links          PCIe (SYS): 0-2",
        "  peer access    none between 0-1 1-0",
        "  bfloat16       auto takes cudnn on cuda:0, cuda:1",
        "                 flash: not installed",
        "  flash-attn     none",
        "  ok    cuda:0 memory: 256 MiB allocated",
        "1 check failed.",
    ):
        assert line in lines
    failed = lines.index(next(line for line in lines if line.startswith("  FAIL  cuda:1 memory: OutOfMemoryError")))
    assert any(line.startswith("        → End the others.") for line in lines[failed:])
    assert json.loads(json.dumps(report.as_json()))["failures"] == 1
