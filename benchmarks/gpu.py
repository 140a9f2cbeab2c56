"""Measures the 14B on one GPU: matrix products, forwards, decoding, preparation, and a whole shot.

    python -m benchmarks.gpu

Measures one part after the other within ``--budget`` seconds and writes results/gpu_<card>.{json,md} after each part:

- the rate of large bf16 matrix products;
- one forward at 480p and at 720p by attention kernel: seconds, TFLOP/s, share of that rate, peak memory beside the
  prediction. Weights are random bf16, made on the device (``--real lynx-full``: the published ones);
- one forward at 480p with each block compiled by ``torch.compile``, beside one without;
- decoding at 480p and 720p, the VAE's convolutions in tf32 and in fp32 (ieee);
- loading from files, then the fixed seconds of a new prompt and of a new subject, with the projections kept on the
  device and borrowed from the files. The files are written to ``--folder`` first: 37 GB;
- a shot of 4 steps through ``lynx-render``, in a process of its own.

``--no-files`` writes no files and leaves out the parts that need them. ``--no-shot`` leaves out the last part. A part
that does not fit into the budget or onto the disk is listed as left out. A part that fails is listed with its error,
and the command exits 1. Without a CUDA device it measures nothing and exits 3. ``--tiny`` runs all parts on a tiny
model on any device. It checks the code, measures nothing and writes nothing to results/.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_files import NoRoom, stay_offline
from benchmarks.gpu_model import FULL, TINY
from benchmarks.gpu_parts import Bench, LeftOut, compiled, decodes, forwards, in_one_line, matmul, prepare, shot
from benchmarks.gpu_report import describe_gpu, report, slug
from benchmarks.machine import record
from lynx_parallel.errors import LynxError

NO_DEVICE = "benchmarks.gpu: no CUDA device here (torch.cuda.is_available() is false). Nothing was measured."


def parts(options: argparse.Namespace) -> dict[str, tuple[Callable[[Bench, int], dict[str, Any]], float]]:
    """Returns the parts by name, in order, each with its share of the budget."""
    files = not options.no_files
    found: dict[str, tuple[Callable[[Bench, int], dict[str, Any]], float]] = {
        "matmul": (matmul, 0.05),
        "forward 480p": (partial(forwards, video="480p"), 0.2),
        "compiled 480p": (partial(compiled, video="480p"), 0.15),
        "forward 720p": (partial(forwards, video="720p"), 0.25),
        "decode 480p": (partial(decodes, video="480p"), 0.1),
        "decode 720p": (partial(decodes, video="720p"), 0.15),
        "prepare": (partial(prepare, files=files), 0.3),
    }
    if not options.no_shot and (files or options.real):
        found["shot"] = (shot, 1.0)
    if options.parts:
        found = {name: part for name, part in found.items() if name.split()[0] in options.parts}
    return found


def measure(bench: Bench, options: argparse.Namespace, save: Callable[[], None]) -> bool:
    """Runs the parts. Returns whether none failed."""
    good = True
    for name, (part, share) in parts(options).items():
        now = time.monotonic()
        bench.part_end = min(now + share * options.budget, bench.end)
        print(f"{name}: {bench.end - now:.0f} s left", flush=True)
        try:
            if now >= bench.end:
                raise LeftOut("no time left")
            bench.found[name] = part(bench, options.repeats)
        except (LeftOut, NoRoom) as reason:
            bench.found[name] = {"left out": str(reason)}
        except Exception as error:  # one part that fails must not cost the others
            bench.found[name] = {"failed": in_one_line(error)}
        good = good and not any("failed" in one for one in (bench.found[name], *kernels_of(bench.found[name])))
        bench.found[name]["took"] = round(time.monotonic() - now, 1)
        save()
    return good


def kernels_of(part: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns a part's results of each kernel; empty for a part that measures no kernels."""
    return list(part.get("kernels", {}).values())


def find_device(*, tiny: bool) -> torch.device | None:
    """Returns the CUDA device; without one, the CPU for the tiny model and None for the 14B."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu") if tiny else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=480.0, help="seconds for everything")
    parser.add_argument("--repeats", type=int, default=3, help="of each forward and decode; less if time is short")
    parser.add_argument("--folder", type=Path, help="for the files; default: a temporary folder")
    parser.add_argument("--parts", nargs="+", help="measure these alone, such as: compiled shot")
    parser.add_argument("--no-files", action="store_true", help="write no weights files")
    parser.add_argument("--no-shot", action="store_true", help="leave out the shot through the command line")
    parser.add_argument("--real", choices=["lynx-full"], help="use this pipeline's weights, which must be installed")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on any device: checks the code alone")
    options = parser.parse_args()
    device = find_device(tiny=options.tiny)
    if device is None:
        print(NO_DEVICE, file=sys.stderr)
        sys.exit(3)
    if options.real:
        stay_offline()
    machine = describe_gpu()
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if not options.real:
            os.environ["LYNX_CACHE"] = f"{folder}/cache"
        bench = Bench(TINY if options.tiny else FULL, device, options.budget, Path(folder), options.real)
        if options.real:
            try:
                bench.weights()
            except LynxError as error:
                print(f"--real {options.real}: {error}", file=sys.stderr)
                sys.exit(3)
        configuration = {
            "model": bench.sizes.transformer, "videos": bench.sizes.videos, "weights": options.real or "random bf16",
            "budget": options.budget, "repeats": options.repeats,
        }  # fmt: skip

        def save() -> None:
            if not options.tiny:
                data = {"machine": machine, "configuration": configuration, "found": bench.found}
                name = "_".join([slug(machine), *(["real"] if options.real else []), *(options.parts or [])])
                record(f"gpu_{name}", data, report(**data))

        good = measure(bench, options, save)
    text = report(machine, configuration, bench.found)
    if options.tiny:
        text += f"\nTiny model on {device.type}: the code works. No figure here means anything.\n"
    print(text)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
