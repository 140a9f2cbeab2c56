"""Runs the doctor's checks and builds its report. Imports neither torch nor Ray."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lynx_parallel.doctor import children, machine
from lynx_parallel.doctor.report import Gpu, Kernels, Report
from lynx_parallel.doctor.weights import find_all
from lynx_parallel.failures import remedy_for
from lynx_parallel.rank.messages import Check


def examine(pipeline: str | None, device: str) -> Report:
    """Returns the report on this machine. A child process that hangs ends after ``children.TIMEOUT_S``.

    Args:
        pipeline: file or bare name; its weights are looked for and never downloaded.
        device: ``cuda``, ``cpu``, or ``auto``: CUDA where there is a GPU.

    Raises:
        InputErrors: the pipeline file is missing or wrong.
    """
    weights = find_all(pipeline) if pipeline is not None else []
    report = Report(socket.gethostname(), pipeline=pipeline, weights=weights)
    report.machine, report.disks = machine.describe(), machine.disks()
    packages = machine.versions()
    ffmpeg, has_encoders = machine.check_ffmpeg()
    report.checks["machine"] = [machine.check_packages(packages), has_encoders]
    driver, driven = machine.nvidia_driver()
    if device == "auto":
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
        device = "cuda" if driven and not hidden else "cpu"
    torch_versions = _overview(report, device)
    report.versions = {**packages, **torch_versions, "ffmpeg": ffmpeg, "NVIDIA driver": driver}
    if device == "cuda":
        report.links = machine.gpu_links()
        if shm := machine.check_shm(report.machine, len(report.gpus)):
            report.checks["machine"].append(shm)
    names = [f"cuda:{gpu.index}" for gpu in report.gpus] if device == "cuda" else ["cpu"]
    _examine_devices(report, names)
    return report


def _overview(report: Report, device: str) -> dict[str, str | None]:
    """Adds GPUs and peer access to the report. Returns torch's versions."""
    answer = children.ask("overview", device)
    results = answer.results
    report.gpus = [Gpu(**gpu) for gpu in results.get("gpu", [])]
    report.no_peer_access = next(iter(results.get("no_peer_access", [])), [])
    for error in results.get("error", []):
        remedy = remedy_for(error, host="")
        if "lynx-render doctor" in remedy:
            remedy = "See whether nvidia-smi works. If it does, reinstall torch in a build for this driver."
        report.checks["machine"].append(Check("CUDA", False, 0.0, error, remedy))
    if answer.failure:
        report.checks["machine"].append(answer.failure)
    return next(iter(results.get("versions", [])), {"torch": None})


def _examine_devices(report: Report, names: list[str]) -> None:
    with _scratch() as folder:
        answers = children.ask_together([("examine", name, str(folder)) for name in names])
    for name, answer in zip(names, answers, strict=True):
        report.kernels += [Kernels(**kernels) for kernels in answer.results.get("kernels", [])]
        report.checks[name] = answer.checks()
    # Only devices that passed take part: the others might never answer.
    good = [name for name in names if all(check.ok for check in report.checks[name])]
    if len(good) > 1:
        for name, answer in zip(good, children.ask_links(good), strict=True):
            report.checks[name] += answer.checks()


@contextmanager
def _scratch() -> Iterator[Path]:
    """Yields a temporary folder in the working folder, or the working folder itself if none can be created.

    In the second case, the check of the output folder fails and reports the reason.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix=".lynx-doctor-", dir=Path.cwd(), ignore_cleanup_errors=True)
    except OSError:
        yield Path.cwd()
        return
    with folder as name:
        yield Path(name)
