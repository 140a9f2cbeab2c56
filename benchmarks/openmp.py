"""Seconds of one rank on all cores of the CPU, with idle OpenMP threads that spin and with threads that sleep.

    python -m benchmarks.openmp

Renders one shot of the demo's model by whole runs of ``lynx-render``, at two sizes, alone on the machine and beside
another busy process. Both kinds of waiting take turns. Spinning is libgomp's default, 300,000 rounds before a thread
sleeps. ``rank.environment`` makes threads sleep at once. The seconds are those of the sidecars. Criterion: beside a
busy process, sleeping takes at most as long as spinning (medians). Exits 1 if it takes longer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.machine import RESULTS, describe, describe_in_words, table

SIZES = {"64 × 48": (64, 48), "320 × 240": (320, 240)}
WAITING = {"spinning": {"GOMP_SPINCOUNT": "300000"}, "sleeping": {}}
BUSY = {"alone": 0, "beside a busy process": 1}
"""Number of other processes that keep a core busy."""


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Keeps ``count`` cores busy during the block."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def seconds(size: tuple[int, int], waiting: str) -> float:
    """Returns the seconds in which a rank denoises and decodes a shot.

    Raises:
        RuntimeError: the run failed.
    """
    width, height = size
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                sys.executable, "-m", "lynx_parallel.cli", "demo", "--only", "astronaut/beach", "--device", "cpu",
                "--ulysses", "1", "--max-gpus", "1", "--set", f"sampling.width={width}",
                "--set", f"sampling.height={height}", "--set", f"output={folder}/out", "--no-report",
            ],
            env={**os.environ, **WAITING[waiting]}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{done.stdout}{done.stderr}")
        made = json.loads(Path(folder, "out", "astronaut", "beach-t01.json").read_text())
    return made["seconds"]["denoise"] + made["seconds"]["decode"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    machine = describe()
    taken: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(repeats):
        for load, others in BUSY.items():
            with busy(others):
                for size in SIZES:
                    for waiting in WAITING:
                        taken.setdefault((size, load, waiting), []).append(seconds(SIZES[size], waiting))
    rows, slower = [], False
    for size in SIZES:
        for load, others in BUSY.items():
            spinning, sleeping = (statistics.median(taken[size, load, waiting]) for waiting in WAITING)
            rows.append([size, load, f"{spinning:.2f}", f"{sleeping:.2f}", f"{sleeping / spinning:.2f}"])
            slower |= others > 0 and sleeping > spinning
    text = (
        f"# OpenMP threads of a rank on the CPU\n\n{describe_in_words(machine)}\n"
        f"One rank on {machine['cores']} cores, the demo's model, 9 frames, 4 steps. Seconds of denoising and "
        f"decoding, medians of {repeats}.\n\n{table(['size', 'the rank is', *WAITING, 'sleeping / spinning'], rows)}"
    )
    print(text)
    name = RESULTS / f"openmp_{machine['cores']}cores"
    name.with_suffix(".md").write_text(text)
    measured = [
        {"size": size, "load": load, "waiting": waiting, "seconds": values}
        for (size, load, waiting), values in taken.items()
    ]
    name.with_suffix(".json").write_text(json.dumps({"machine": machine, "measured": measured}, indent=1) + "\n")
    sys.exit(slower)


if __name__ == "__main__":
    main()
