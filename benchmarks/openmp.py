"""Seconds of one rank on all cores of the CPU, with idle OpenMP threads that spin and with threads that sleep.

    python -m benchmarks.openmp

Renders one shot of the demo's model by whole runs of ``lynx-render``, at two sizes, with each kind of waiting in turn.
Spinning is libgomp's default, 300,000 rounds before a thread sleeps. ``rank.environment`` makes threads sleep at once.
The seconds are those of the sidecars. Criterion: at each size, sleeping takes at most 1.1 × as long as spinning
(medians). Exits 1 if it takes longer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import RESULTS, describe, describe_in_words, table

SIZES = {"64 × 48": (64, 48), "320 × 240": (320, 240)}
WAITING = {"spinning": {"GOMP_SPINCOUNT": "300000"}, "sleeping": {}}
MOST_RATIO = 1.1


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
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    machine = describe()
    taken: dict[tuple[str, str], list[float]] = {(size, waiting): [] for size in SIZES for waiting in WAITING}
    for _ in range(repeats):
        for size, waiting in taken:
            taken[size, waiting].append(seconds(SIZES[size], waiting))
    medians = {key: statistics.median(values) for key, values in taken.items()}
    ratios = {size: medians[size, "sleeping"] / medians[size, "spinning"] for size in SIZES}
    rows = [
        [size, *(f"{medians[size, waiting]:.2f}" for waiting in WAITING), f"{ratio:.2f}"]
        for size, ratio in ratios.items()
    ]
    text = (
        f"# OpenMP threads of a rank on the CPU\n\n{describe_in_words(machine)}\n"
        f"One rank on {machine['cores']} cores, the demo's model, 9 frames, 4 steps. "
        f"Seconds of denoising and decoding, "
        f"medians of {repeats}.\n\n{table(['size', *WAITING, 'sleeping / spinning'], rows)}"
    )
    print(text)
    name = RESULTS / f"openmp_{machine['cores']}cores"
    name.with_suffix(".md").write_text(text)
    measured = [{"size": size, "waiting": waiting, "seconds": values} for (size, waiting), values in taken.items()]
    name.with_suffix(".json").write_text(json.dumps({"machine": machine, "measured": measured}, indent=1) + "\n")
    sys.exit(any(ratio > MOST_RATIO for ratio in ratios.values()))


if __name__ == "__main__":
    main()
