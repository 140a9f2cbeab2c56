"""Runs the doctor's checks and builds its report. Imports neither torch nor Ray."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from lynx_parallel.doctor import children, machine
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
    weight_lines,
)
from lynx_parallel.doctor.weights import find_all
from lynx_parallel.failures import remedy_for
from lynx_parallel.rank.messages import Check


class Show(Protocol):
    """Shows lines of the report.

    Args:
        failed: whether they are about a check that failed.
    """

    def __call__(self, lines: Iterable[str], *, failed: bool = False) -> None: ...


def examine(pipeline: str | None, device: str, show: Show) -> Report:
    """Returns the report on this machine. A child process that hangs ends after ``children.TIMEOUT_S``.

    Args:
        pipeline: file or bare name; its weights are looked for and never downloaded.
        device: ``cuda``, ``cpu``, or ``auto``: CUDA where there is a GPU.
        show: gets each line as soon as it is known.

    Raises:
        InputErrors: the pipeline file is missing or wrong.
    """
    weights = find_all(pipeline) if pipeline is not None else []
    report = Report(socket.gethostname(), pipeline=pipeline, weights=weights)
    report.machine, report.disks = machine.describe(), machine.disks()
    show(machine_lines(report))
    if pipeline is not None:
        show(("", f"Weights of {pipeline}"))
        for weight in weights:
            show(weight_lines(weight), failed=not weight.ok)
    packages = machine.versions()
    ffmpeg, has_encoders = machine.check_ffmpeg()
    report.checks["machine"] = [machine.check_packages(packages), has_encoders]
    if (site := machine.check_site()) is not None:
        report.checks["machine"].append(site)
    driver, driven = machine.nvidia_driver()
    if device == "auto":
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
        device = "cuda" if driven and not hidden else "cpu"
    torch_versions = _overview(report, device)
    report.versions = {**packages, **torch_versions, "ffmpeg": ffmpeg, "NVIDIA driver": driver}
    show(version_lines(report))
    if device == "cuda":
        report.links = machine.gpu_links()
        if shm := machine.check_shm(report.machine, len(report.gpus)):
            report.checks["machine"].append(shm)
    show(gpu_lines(report))
    show(("", "Checks"))
    for check in report.checks["machine"]:
        show(check_lines("machine", check), failed=not check.ok)
    names = [f"cuda:{gpu.index}" for gpu in report.gpus] if device == "cuda" else ["cpu"]
    _examine_devices(report, names, show)
    show(kernel_lines(report.kernels))
    show(("", last_line(report)), failed=True)
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


def _examine_devices(report: Report, names: list[str], show: Show) -> None:
    def heard(name: str, kind: str, value: Any) -> None:
        if kind == "check":
            show(check_lines(name, Check(**value)), failed=not value["ok"])

    def show_failure(name: str, answer: children.Answer) -> None:
        if answer.failure:
            show(check_lines(name, answer.failure), failed=True)

    with _scratch() as folder:
        answers = children.ask_together([("examine", name, str(folder)) for name in names], heard=heard)
    for name, answer in zip(names, answers, strict=True):
        report.kernels += [Kernels(**kernels) for kernels in answer.results.get("kernels", [])]
        report.checks[name] = answer.checks()
        show_failure(name, answer)
    # Only devices that passed take part: the others might never answer.
    good = [name for name in names if all(check.ok for check in report.checks[name])]
    if len(good) > 1:
        for name, answer in zip(good, children.ask_links(good, heard=heard), strict=True):
            report.checks[name] += answer.checks()
            show_failure(name, answer)


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
