"""``benchmarks.gpu`` and ``make gpu`` without a GPU: the code runs on tiny shapes, and nothing claims a figure."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from huggingface_hub import is_offline_mode

from benchmarks import gpu, gpu_parts, machine
from benchmarks.gpu_files import NoRoom, write_pipeline
from benchmarks.gpu_model import FULL, KERNELS, TINY, predicted_bytes, random_text_encoder
from benchmarks.gpu_parts import Bench, forwards, prepare, shot
from benchmarks.gpu_report import describe_gpu, report, slug
from lynx_parallel.inputs.decode_memory import VideoSize
from tests.helpers.repository import REPOSITORY

CPU = torch.device("cpu")
PARTS = ("matmul", "forward 480p", "compiled 480p", "forward 720p", "decode 480p", "decode 720p", "prepare", "shot")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for results, and the user's environment restored after ``main``."""
    monkeypatch.setattr(machine, "RESULTS", tmp_path / "results")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("LYNX_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    return tmp_path / "results"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of the command in this process."""
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", *arguments])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    return int(ended.value.code or 0)


def test_every_part_runs_tiny(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights files and the shot through the command line included."""
    seen: list[dict[str, Any]] = []
    original, decode = gpu.measure, gpu_parts.decode
    monkeypatch.setattr(gpu, "measure", lambda bench, *rest: seen.append(bench.found) or original(bench, *rest))
    precisions: list[str] = []

    def seen_decode(*arguments: Any, **options: Any) -> torch.Tensor:
        precisions.append(options["precision"])
        return decode(*arguments, **options)

    monkeypatch.setattr(gpu_parts, "decode", seen_decode)
    code = run(monkeypatch, "--tiny", "--repeats", "1", "--budget", "600")
    said = capsys.readouterr().out
    assert code == 0, said
    (found,) = seen
    assert tuple(found) == PARTS
    assert not [name for name, part in found.items() if {"failed", "left out"} & part.keys()]
    for video, tokens in (("480p", 27), ("720p", 36)):
        part = found[f"forward {video}"]
        assert part["tokens"] == tokens
        assert part["kernels"].keys() == set(KERNELS)
        assert part["kernels"]["sdpa"]["finite"]
        assert found[f"decode {video}"].keys() >= {"tf32", "fp32"}
    assert found["compiled 480p"]["compiled"]["finite"]
    assert found["compiled 480p"]["difference"] < 0.02
    assert set(precisions) == {"tf32", "ieee"}
    assert {"load", "text K/V", "new prompt", "new subject"} <= found["prepare"]["kept"].keys()
    assert found["prepare"]["kept"].keys() == found["prepare"]["borrowed"].keys()
    assert found["shot"]["seconds"].keys() >= {"denoise", "decode"}
    assert "No figure here means anything." in said
    assert not results.exists()


def test_results_are_written_after_each_part(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "FULL", TINY)
    monkeypatch.setattr(gpu, "find_device", lambda *, tiny: CPU)
    written: list[list[str]] = []
    original = machine.record

    def record(*arguments: Any) -> None:
        original(*arguments)
        (file,) = results.glob("gpu_*.json")
        written.append(list(json.loads(file.read_text())["found"]))

    monkeypatch.setattr(gpu, "record", record)
    assert run(monkeypatch, "--repeats", "1", "--no-files") == 0
    assert written == [list(PARTS[:n]) for n in range(1, len(PARTS))]  # all but the shot, which needs files
    (text,) = results.glob("gpu_*.md")
    assert "2.5 s a forward at 480p on an H200" in text.read_text()


def test_without_a_device_nothing_is_measured(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(monkeypatch) == 3
    assert capsys.readouterr().err == f"{gpu.NO_DEVICE}\n"
    assert not results.exists()


def test_published_weights_that_are_not_installed(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert run(monkeypatch, "--tiny", "--real", "lynx-full") == 3
    assert is_offline_mode()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("--real lynx-full: Wan-AI/Wan2.1-T2V-14B-Diffusers: ")


class Options(NamedTuple):
    budget: float = 60.0
    repeats: int = 1


def fail(bench: Bench, repeats: int) -> dict[str, Any]:
    raise RuntimeError("CUDA error:\nout of memory")


def succeed(bench: Bench, repeats: int) -> dict[str, Any]:
    return {"n": {}}


@pytest.mark.parametrize(
    ("budget", "good", "found"),
    [
        (60.0, False, {"a": "failed: RuntimeError: CUDA error: out of memory", "b": ""}),
        (0.0, True, {"a": "left out: no time left", "b": "left out: no time left"}),
    ],
)
def test_a_part_that_fails_or_has_no_time_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: float, good: bool, found: dict[str, str]
) -> None:
    monkeypatch.setattr(gpu, "parts", lambda options: {"a": (fail, 0.5), "b": (succeed, 0.5)})
    bench = Bench(TINY, CPU, budget, tmp_path)
    saved: list[int] = []
    assert gpu.measure(bench, Options(budget), lambda: saved.append(len(bench.found))) is good  # type: ignore[arg-type]
    assert saved == [1, 2]
    text = report(describe_gpu(), {"weights": "random", "repeats": 1}, bench.found)
    assert [line for line in text.splitlines() if line.startswith("- ")] == [
        f"- {name}: {line}" for name, line in found.items() if line
    ]


def test_a_kernel_that_fails_costs_no_other(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = gpu_parts.attention_kernel

    def broken(*arguments: Any) -> Any:
        raise RuntimeError("no kernel image")

    def kernel(name: Any, *rest: Any) -> Any:
        return ("flash", broken) if name == "flash" else original(name, *rest)

    monkeypatch.setattr(gpu_parts, "attention_kernel", kernel)
    monkeypatch.setattr(gpu, "parts", lambda options: {"forward 480p": (partial(forwards, video="480p"), 0.5)})
    assert run(monkeypatch, "--tiny", "--repeats", "1") == 1
    said = capsys.readouterr().out
    assert "- forward 480p, flash: failed: RuntimeError: no kernel image\n" in said
    assert "| flash | FAILED |" in said
    assert re.search(r"^\| sdpa \| \d", said, re.M)


def test_preparation_without_room_for_files_keeps_random_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    bench = Bench(TINY, CPU, 60.0, tmp_path)
    found = prepare(bench, 1, files=True)
    assert "new subject" in found["kept"]
    assert "borrowed" not in found
    assert "GB free" in found["left out"]
    with pytest.raises(NoRoom):
        shot(bench, 1)


def test_files_that_do_not_fit_are_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(NoRoom, match=r"GB free; --folder names another place"):
        write_pipeline(tmp_path / "files", TINY, CPU, time.monotonic() + 60)
    assert not list((tmp_path / "files").iterdir())


def test_files_that_take_too_long_are_given_up(tmp_path: Path) -> None:
    with pytest.raises(NoRoom, match="more than the time left"):
        write_pipeline(tmp_path, TINY, CPU, time.monotonic())
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_the_full_sizes_are_wan_s() -> None:
    assert {name: VideoSize(*video).tokens for name, video in FULL.videos.items()} == {"480p": 32760, "720p": 75600}
    small, large = (predicted_bytes(FULL.transformer, video) for video in FULL.videos.values())
    assert 37e9 < small < large < 60e9
    encoder = random_text_encoder(FULL.text_encoder, torch.device("meta"))
    assert sum(parameter.numel() for parameter in encoder.parameters()) == pytest.approx(5.68e9, rel=0.01)


def found_on_a_card(seconds: float) -> dict[str, Any]:
    """Made-up results."""
    kernel = {
        "seconds": [seconds], "median": seconds, "tflop_per_s": 1685 / seconds, "peak_bytes": 40_000_000_000,
        "finite": True,
    }  # fmt: skip
    return {
        "matmul": {"1×1×1": {"seconds": 0.001, "tflop_per_s": 800.0}, "took": 1.0},
        "forward 480p": {
            "tokens": 32760, "tflop": 1685.0, "auto": "cudnn", "predicted_bytes": 41_000_000_000,
            "kernels": {"cudnn": kernel, "flash3": {"missing": "not installed"}},
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("card", "seconds", "verdict"),
    [
        ("NVIDIA H200", 2.4, "Here: 2.40 s, met."),
        ("NVIDIA H200", 2.6, "Here: 2.60 s, NOT MET."),
        ("NVIDIA H100 80GB HBM3", 2.4, "Not decided by this run."),
    ],
)
def test_the_report_states_the_aim_and_the_share(card: str, seconds: float, verdict: str) -> None:
    here = describe_gpu() | {"gpus": [card]}
    text = report(here, {"weights": "random bf16", "repeats": 1}, found_on_a_card(seconds))
    assert verdict in text
    share = round(100 * 1685 / seconds / 800)
    assert f"| {1685 / seconds:.0f} | {share} % | 40.0 | 41.0 |" in text
    assert "| flash3 | not available here |" in text
    assert slug(here) == card.lower().replace(" ", "_")


def test_make_gpu_without_a_device_ends_before_installing(tmp_path: Path) -> None:
    if torch.cuda.is_available() or Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a CUDA device")
    made = subprocess.run(
        ["make", "--no-print-directory", "gpu", f"VENV={tmp_path / 'venv'}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode != 0
    assert made.stderr.splitlines()[0] == "make gpu: no CUDA device on this machine. Nothing was run."
    assert made.stdout == ""
    assert not (tmp_path / "venv").exists()


STUB = """#!/bin/sh
echo "$*" >> {log}
case "$*" in *{fails}*) exit 1 ;; esac
"""


@pytest.mark.parametrize(("real", "fails", "code"), [("", "nothing", 0), ("", "pytest", 2), ("1", "benchmarks.gpu", 2)])
def test_make_gpu_runs_all_parts_and_reports_any_failure(tmp_path: Path, real: str, fails: str, code: int) -> None:
    """With stand-ins for nvidia-smi and Python, which log what they are asked and fail at one part."""
    log, programs = tmp_path / "log", tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    for name, fails_at in (("python", fails), ("nvidia-smi", "nothing")):
        (programs / name).write_text(STUB.format(log=log, fails=fails_at))
        (programs / name).chmod(0o755)
    (tmp_path / "venv" / ".installed").touch()
    made = subprocess.run(
        ["make", "gpu", f"VENV={tmp_path / 'venv'}", f"REAL={real}"],
        cwd=REPOSITORY, env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == code, made.stderr
    listed, check, *calls = log.read_text().splitlines()
    assert listed == "-L"
    assert "torch.cuda.is_available()" in check
    tests, plain, with_weights, contact_sheet = (
        "-m pytest -q -m gpu tests/gpu",
        "-m benchmarks.gpu",
        "-m benchmarks.gpu --real lynx-full",
        "-m benchmarks.contact_sheet",
    )
    assert calls == ([tests, with_weights, contact_sheet] if real else [tests, plain])
