"""The doctor's report, as values, lines and JSON. Imports neither torch nor Ray."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from lynx_parallel.rank.messages import Check
from lynx_parallel.text import counted

WIDTH = 80
_LABEL = 15


@dataclass(frozen=True)
class Disk:
    """Space of the file system that holds a folder, in bytes."""

    what: str
    path: str
    free: int
    total: int


@dataclass(frozen=True)
class Gpu:
    """One GPU as torch sees it; memory in bytes."""

    index: int
    name: str
    uuid: str
    memory_total: int
    memory_free: int
    capability: str


@dataclass(frozen=True)
class Kernels:
    """Attention kernels on one device in one dtype.

    Attributes:
        auto: the kernel that ``--attention auto`` takes; None if no kernel works.
        found: by kernel, ``works`` or the reason why not.
    """

    device: str
    dtype: str
    auto: str | None
    found: dict[str, str]


@dataclass(frozen=True)
class Weight:
    """One part of a pipeline's weights; ``bytes`` of the files that are present."""

    name: str
    source: str
    ok: bool
    bytes: int
    licence: str
    detail: str
    remedy: str = ""


@dataclass
class Report:
    """The doctor's findings.

    Attributes:
        versions: by package or driver; None if it is missing.
        machine: ``os``, ``cores``, and in bytes ``memory_total``, ``memory_free``, ``shm_total``, ``shm_free``.
        links: pairs of GPUs by kind of link, named and numbered as nvidia-smi does.
        no_peer_access: pairs of GPUs that cannot read each other's memory, numbered as torch does.
        checks: by what was checked: ``machine``, ``cpu``, ``cuda:0`` and so on.
        pipeline: the command's argument, or None.
        weights: those of ``pipeline``.
    """

    host: str
    versions: dict[str, str | None] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    disks: list[Disk] = field(default_factory=list)
    gpus: list[Gpu] = field(default_factory=list)
    links: dict[str, list[str]] = field(default_factory=dict)
    no_peer_access: list[str] = field(default_factory=list)
    kernels: list[Kernels] = field(default_factory=list)
    checks: dict[str, list[Check]] = field(default_factory=dict)
    pipeline: str | None = None
    weights: list[Weight] = field(default_factory=list)

    @property
    def failures(self) -> int:
        checks = sum(not check.ok for checks in self.checks.values() for check in checks)
        return checks + sum(not weight.ok for weight in self.weights)

    def as_json(self) -> dict[str, Any]:
        """Returns the report as a JSON object, with ``ok`` and ``failures``."""
        return {"ok": not self.failures, "failures": self.failures, **asdict(self)}


def machine_lines(report: Report) -> Iterator[str]:
    """Yields the lines about the machine, for a terminal of 80 columns, as do the others."""
    yield f"Machine {report.host}"
    machine = report.machine
    yield from _entry("system", machine["os"])
    yield from _entry("CPU", f"{machine['cores']} cores")
    yield from _entry("memory", _space(machine["memory_free"], machine["memory_total"]))
    yield from _entry("/dev/shm", _space(machine["shm_free"], machine["shm_total"]))
    for disk in report.disks:
        yield from _entry(disk.what, f"{_space(disk.free, disk.total)}  {disk.path}")


def version_lines(report: Report) -> Iterator[str]:
    """Yields the lines about versions."""
    yield from ("", "Versions")
    for name, version in report.versions.items():
        yield from _entry(name, version or "none")


def check_lines(place: str, check: Check) -> Iterator[str]:
    """Yields the lines about a check and its remedy."""
    name = check.name if place == check.name else f"{place} {check.name}"
    yield from _mark(check.ok, f"{name}: {check.detail}", check.remedy)


def weight_lines(weight: Weight) -> Iterator[str]:
    """Yields the lines about one part of a pipeline's weights."""
    size = f"{gigabytes(weight.bytes)}, " if weight.bytes else ""
    line = f"{weight.name}: {weight.source}: {size}{weight.detail}; licence: {weight.licence}"
    yield from _mark(weight.ok, line, weight.remedy)


def last_line(report: Report) -> str:
    """Returns how many checks failed."""
    return f"{counted(report.failures, 'check')} failed." if report.failures else "All checks passed."


def gpu_lines(report: Report) -> Iterator[str]:
    """Yields the lines about GPUs and their links."""
    yield from ("", "GPUs")
    if not report.gpus:
        yield "  none used"
    for gpu in report.gpus:
        memory = _space(gpu.memory_free, gpu.memory_total)
        yield from _entry(f"cuda:{gpu.index}", f"{gpu.name}, {memory}, capability {gpu.capability}, {gpu.uuid}")
    for kind, pairs in report.links.items():
        yield from _entry("links", f"{_link(kind)}: {' '.join(pairs)}")
    if len(report.gpus) > 1:
        without = f"none between {' '.join(report.no_peer_access)}" if report.no_peer_access else "between all pairs"
        yield from _entry("peer access", without)


def kernel_lines(kernels: list[Kernels]) -> Iterator[str]:
    """Yields one entry for all devices that have the same result."""
    by_result: dict[tuple[str, str | None, tuple[tuple[str, str], ...]], list[str]] = {}
    for one in kernels:
        by_result.setdefault((one.dtype, one.auto, tuple(one.found.items())), []).append(one.device)
    if by_result:
        yield from ("", "Attention kernels")
    for (dtype, auto, found), devices in by_result.items():
        yield from _entry(dtype, f"auto takes {auto or 'none'} on {', '.join(devices)}")
        for name, result in found:
            yield from _entry("", f"{name}: {result}")


def _link(kind: str) -> str:
    return f"NVLink × {kind.removeprefix('NV')}" if kind.startswith("NV") else f"PCIe ({kind})"


def _entry(label: str, value: str) -> Iterator[str]:
    yield from _wrapped(f"  {label:{_LABEL}}", value)


def _mark(ok: bool, line: str, remedy: str) -> Iterator[str]:
    yield from _wrapped("  ok    " if ok else "  FAIL  ", line)
    if remedy:
        yield from _wrapped("        → ", remedy)


def _wrapped(head: str, value: str) -> Iterator[str]:
    """Yields the lines of a value beside its head. A path is never broken."""
    yield from textwrap.wrap(
        value or "-", WIDTH, initial_indent=head, subsequent_indent=" " * len(head),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _space(free: int, total: int) -> str:
    return f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"


def gigabytes(size: int) -> str:
    """Returns a size in GB, or in MB if it is small."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
