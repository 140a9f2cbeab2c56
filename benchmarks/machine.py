"""What a figure was measured on, and where it is put."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("lynx-parallel", "torch", "xfuser", "yunchang", "diffusers", "safetensors")


def describe() -> dict[str, Any]:
    """Hardware, versions, date, and how busy the machine was before the run."""
    with open("/proc/cpuinfo") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    devices = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "ram_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": devices,
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def describe_in_words(machine: Mapping[str, Any]) -> str:
    """``describe``'s answer as lines of Markdown."""
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items() if value)
    devices = "; " + ", ".join(machine["gpus"]) if machine["gpus"] else ""
    return (
        f"{machine['date']} · {machine['cpu']}, {machine['cores']} cores, {machine['ram_gib']} GiB{devices} "
        f"· load average before the run {machine['load_before']}\n\n"
        f"Python {machine['python']}, {versions}\n"
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def record(name: str, data: Mapping[str, Any], text: str) -> None:
    """Writes ``results/<name>.json`` and ``.md``."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(text)
