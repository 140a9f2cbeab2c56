"""Finds what this machine has, without torch: packages, ffmpeg, driver, memory, disks, GPU links."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from importlib import metadata
from itertools import combinations
from pathlib import Path
from typing import Any

import psutil

import lynx_parallel
from lynx_parallel.doctor.report import Disk
from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.cache_root import cache_root
from lynx_parallel.inputs.site import load_site, site_path
from lynx_parallel.rank.messages import Check
from lynx_parallel.text import first_line

PACKAGES = ("diffusers", "transformers", "xfuser", "ray", "onnxruntime", "flash-attn", "flash-attn-3")
OPTIONAL = ("flash-attn", "flash-attn-3")
ENCODERS = ("libx264", "libx265")
SHM_BYTES = 256 * 2**20
"""Least free bytes in /dev/shm for NCCL between the GPUs of a machine. Docker's default is 64 MB."""
_TOOL_TIMEOUT_S = 20


def versions() -> dict[str, str | None]:
    """Returns versions by package; None for a missing one. A child process reports torch's version."""
    found: dict[str, str | None] = {"lynx-parallel": lynx_parallel.__version__, "Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def describe() -> dict[str, Any]:
    """Returns system, cores and memory; see ``Report.machine``."""
    memory = psutil.virtual_memory()
    try:
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        system = platform.system()
    shm = shutil.disk_usage("/dev/shm") if os.path.isdir("/dev/shm") else None
    return {
        "os": f"{system}, {platform.system()} {platform.release()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_total": memory.total,
        "memory_free": memory.available,
        "shm_total": shm.total if shm else 0,
        "shm_free": shm.free if shm else 0,
    }


def disks() -> list[Disk]:
    """Returns the space of the folders that a run fills."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = {"working folder": Path.cwd(), "cache folder": cache_root(), "hub cache": Path(HF_HUB_CACHE)}
    return [_disk(what, folder) for what, folder in folders.items()]


def _disk(what: str, folder: Path) -> Disk:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    usage = shutil.disk_usage(existing)
    return Disk(what, str(folder), usage.free, usage.total)


def check_site() -> Check | None:
    """Returns the check of the site file; None if there is none."""
    path = site_path()
    if path is None:
        return None
    try:
        return Check("site", True, 0.0, f"{path}: {load_site()}")
    except InputErrors as error:
        return Check("site", False, 0.0, error.lines[0], "Ask the administrator to correct it. Nothing renders before.")


def check_packages(found: dict[str, str | None]) -> Check:
    """Returns whether every package that a run needs is installed."""
    missing = [name for name, version in found.items() if version is None and name in set(PACKAGES) - set(OPTIONAL)]
    if missing:
        return Check("packages", False, 0.0, f"missing: {', '.join(missing)}", "Install lynx-parallel again.")
    return Check("packages", True, 0.0, "all installed")


def check_ffmpeg() -> tuple[str | None, Check]:
    """Returns ffmpeg's version, and whether it has the encoders of both codecs."""
    from imageio_ffmpeg import get_ffmpeg_exe

    began = time.perf_counter()
    remedy = "Reinstall imageio-ffmpeg, or name another ffmpeg in IMAGEIO_FFMPEG_EXE."
    try:
        tool = get_ffmpeg_exe()
        first = _output(tool, "-version").splitlines()[0].split()
        listed = {
            line.split()[1] for line in _output(tool, "-hide_banner", "-encoders").splitlines() if line[1:2] == "V"
        }
    except (RuntimeError, OSError, subprocess.SubprocessError, IndexError) as error:
        return None, Check("ffmpeg", False, time.perf_counter() - began, first_line(error), remedy)
    version = first[2] if len(first) > 2 else "unknown"
    missing = [encoder for encoder in ENCODERS if encoder not in listed]
    detail = f"no encoder {', '.join(missing)} in {tool}" if missing else f"encoders {', '.join(ENCODERS)}"
    return version, Check("ffmpeg", not missing, time.perf_counter() - began, detail, remedy if missing else "")


def check_shm(machine: dict[str, Any], gpus: int) -> Check | None:
    """Returns whether /dev/shm has enough space for several GPUs, or None with fewer than two GPUs."""
    if gpus < 2:
        return None
    ok = machine["shm_free"] >= SHM_BYTES
    detail = f"{machine['shm_free'] / 1e6:.0f} MB free in /dev/shm, {SHM_BYTES / 1e6:.0f} MB needed"
    remedy = "" if ok else "Start the container with --shm-size=8g or --ipc=host."
    return Check("shared memory", ok, 0.0, detail, remedy)


def nvidia_driver() -> tuple[str | None, int]:
    """Returns the NVIDIA driver's version and the number of GPUs from nvidia-smi, or (None, 0) if it does not run."""
    try:
        listed = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split()
    except (OSError, subprocess.SubprocessError):
        return None, 0
    return (listed[0], len(listed)) if listed else (None, 0)


def gpu_links() -> dict[str, list[str]]:
    """Returns pairs of GPUs by kind of link; empty without nvidia-smi."""
    try:
        return parse_topology(_output("nvidia-smi", "topo", "-m"))
    except (OSError, subprocess.SubprocessError):
        return {}


def parse_topology(printed: str) -> dict[str, list[str]]:
    """Returns pairs such as ``0-1`` by kind of link (``NV18``, ``PIX``, ``SYS`` …).

    Args:
        printed: the matrix of ``nvidia-smi topo -m``, whose first columns are the GPUs in order.
    """
    rows = {int(row[1]): row[2].split() for row in re.finditer(r"(?m)^GPU(\d+)[ \t]+(.*)$", printed)}
    links: dict[str, list[str]] = {}
    for a, b in combinations(sorted(rows), 2):
        if b < len(rows[a]):
            links.setdefault(rows[a][b], []).append(f"{a}-{b}")
    return links


def _output(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=_TOOL_TIMEOUT_S, check=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.stdout
