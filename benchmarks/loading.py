"""Host memory and time of loading: one rank, two ranks on one node, two ranks with sharded weights.

    python -m benchmarks.loading

Writes a synthetic bf16 checkpoint of more than 3 GB (Wan's layout, several files and an index, Lynx full's adapters)
to a temporary folder. Every rank is a fresh process; its figures come from the kernel. Criteria:

- one rank: peak resident memory, imports included, ≤ bytes of its weights × 1.15 + 1 GB;
- two ranks: sum of proportional set sizes, after each has read every weight, ≤ 1.3 × that of one rank alone;
- two ranks, sharded: each one's peak ≤ bytes of its share × 1.15 + 1 GB.

Exits 1 if one fails. ``--stored float32`` writes the base in fp32. Ranks that convert it share no pages. The second
criterion then applies to two ranks that read the copy that ``lynx-render fetch --convert`` makes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.shapes import (
    WAN_14B,
    Shapes,
    dim_of,
    id_shapes,
    ref_shapes,
    resampler_shapes,
    split_into_files,
    transformer_shapes,
    write_index,
)

SMALLER = {**WAN_14B, "num_attention_heads": 16, "ffn_dim": 8192, "num_layers": 24}
FILE_BYTES = 900_000_000
GB = 1e9


def write_checkpoint(folder: Path, stored: str) -> dict[str, int]:
    """Random weights under ``folder``; returns bytes of the files."""
    import torch
    from safetensors.torch import save_file

    def save(path: Path, shapes: Shapes, dtype: torch.dtype) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(0)
        save_file(
            {
                key: torch.empty(shape, dtype=torch.float32).uniform_(-0.05, 0.05, generator=generator).to(dtype)
                for key, shape in shapes.items()
            },
            path,
        )

    base = folder / "wan" / "transformer"
    files = split_into_files(transformer_shapes(SMALLER), "F32" if stored == "float32" else "BF16", FILE_BYTES)
    write_index(base, files, SMALLER)
    for name, part in files.items():
        save(base / name, part, getattr(torch, stored))
    save(folder / "resampler.safetensors", resampler_shapes(dim_of(SMALLER)), torch.bfloat16)
    save(folder / "id.safetensors", id_shapes(SMALLER, "full", "reference"), torch.bfloat16)
    save(folder / "ref.safetensors", ref_shapes(SMALLER, "reference"), torch.bfloat16)
    return {
        "transformer": sum((base / name).stat().st_size for name in files),
        "transformer_files": len(files),
        "adapters": sum((folder / f"{name}.safetensors").stat().st_size for name in ("resampler", "id", "ref")),
    }


def write_copy(folder: Path, stored: str) -> dict[str, int]:
    """Stores a bf16 copy of the transformer, as ``lynx-render fetch --convert`` does. Returns its files' bytes."""
    if stored == "bfloat16":
        return {}
    source, target = folder / "wan" / "transformer", folder / "converted"
    command = [sys.executable, "-m", "lynx_parallel.model.convert", str(source), str(target), "bfloat16"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {"converted": sum(path.stat().st_size for path in target.glob("*.safetensors"))}


def be_a_rank(folder: Path, rank: int, ranks: int, sharded: bool, copy: bool) -> None:
    """Loads, reads every weight once, says so on stdout, and stays until stdin closes."""
    import torch
    from torch import distributed as dist

    from lynx_parallel.inputs.weight_files import WeightFiles
    from lynx_parallel.model.checkpoints import load_resampler, load_transformer

    torch.set_num_threads(1)
    shard = None
    if sharded:
        from lynx_parallel.inputs.layout import Layout
        from lynx_parallel.parallel import shard as sharding
        from lynx_parallel.parallel import xdit

        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        store = dist.FileStore(str(folder / f"store-{os.getppid()}"), ranks)
        membership = xdit.join(
            Layout(ulysses=ranks), rank=rank, store=store, device=torch.device("cpu"), transformer_config=SMALLER
        )

        def shard(model: Any) -> None:
            sharding.shard(model, membership.tokens.group)

    before = _status("VmHWM")
    weights = WeightFiles(
        folder / "wan", folder / "resampler.safetensors", folder / "id.safetensors", folder / "ref.safetensors",
        folder / "converted" if copy else None,
    )  # fmt: skip
    began = time.perf_counter()
    transformer = load_transformer(weights, dtype=torch.bfloat16, shard=shard)
    resampler = load_resampler(weights.resampler, dtype=torch.bfloat16)
    loaded = time.perf_counter()
    here = [getattr(p, "_local_tensor", p) for module in (transformer, resampler) for p in module.parameters()]
    # A checksum of the bits: reads every page and makes no copy as large as a weight.
    checksum = sum(_sum_of_words(tensor) for tensor in here) % 2**64
    touched = time.perf_counter()
    say = {
        "weights": sum(tensor.numel() * tensor.element_size() for tensor in here),
        "before": before,
        "peak": _status("VmHWM"),
        "load_s": round(loaded - began, 2),
        "read_s": round(touched - loaded, 2),
        "checksum": checksum,
    }
    print(json.dumps(say), flush=True)
    sys.stdin.read()


def _sum_of_words(tensor: Any) -> int:
    import torch

    raw = tensor.reshape(-1).view(torch.uint8).numpy()
    return int(raw[: len(raw) // 8 * 8].view("u8").sum())


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field + ":"))


def _pss(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))


def measure(folder: Path, ranks: int, sharded: bool, copy: bool = False) -> list[dict[str, Any]]:
    """Runs this many ranks side by side; what each says of itself, and its PSS while all hold their weights."""
    command = [sys.executable, "-m", "benchmarks.loading", "--folder", str(folder), "--ranks", str(ranks)]
    command += ["--sharded"] * sharded + ["--copy"] * copy
    processes = [
        subprocess.Popen(
            [*command, "--rank", str(rank)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for rank in range(ranks)
    ]  # fmt: skip
    try:
        results = []
        for process in processes:
            assert process.stdout is not None
            line = next((line for line in process.stdout if line.startswith("{")), None)
            if line is None:
                raise SystemExit("a rank ended before it had loaded")
            results.append(json.loads(line))
        for process, result in zip(processes, results, strict=True):
            result["pss"] = _pss(process.pid)
        return results
    finally:
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)


def criteria(
    one: list[dict[str, Any]], two: list[dict[str, Any]], sharded: list[dict[str, Any]], copied: bool
) -> list[dict[str, Any]]:
    """Each criterion with what was measured and what is allowed, in bytes."""

    def peak(name: str, result: dict[str, Any]) -> dict[str, Any]:
        return {"name": name, "measured": result["peak"], "allowed": int(result["weights"] * 1.15 + GB)}

    found = [
        peak("one rank, peak", one[0]),
        {
            "name": "two ranks from the converted copy, sum of PSS" if copied else "two ranks, sum of PSS",
            "measured": sum(result["pss"] for result in two),
            "allowed": int(1.3 * one[0]["pss"]),
        },
        *(peak(f"two ranks sharded, peak of rank {rank}", result) for rank, result in enumerate(sharded)),
    ]
    return [{**criterion, "met": criterion["measured"] <= criterion["allowed"]} for criterion in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stored", choices=("bfloat16", "float32"), default="bfloat16", help="type of the base's file")
    parser.add_argument("--no-record", action="store_true", help="leave results/ as it is")
    for name in ("--folder", "--rank", "--ranks"):  # for the processes this one starts
        parser.add_argument(name, help=argparse.SUPPRESS)
    for name in ("--sharded", "--copy"):
        parser.add_argument(name, help=argparse.SUPPRESS, action="store_true")
    options = parser.parse_args()
    if options.rank is not None:
        be_a_rank(Path(options.folder), int(options.rank), int(options.ranks), options.sharded, options.copy)
        return

    from benchmarks.machine import describe, describe_in_words, record, table

    machine = describe()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sizes = write_checkpoint(folder, options.stored)
        one, two = measure(folder, 1, False), measure(folder, 2, False)
        sharded = measure(folder, 2, True)
        sizes |= write_copy(folder, options.stored)
        copied = measure(folder, 2, False, copy=True) if "converted" in sizes else []
    if len({result["checksum"] for result in (*one, *two, *copied)}) != 1:
        raise SystemExit("ranks hold different weights")
    found = criteria(one, copied or two, sharded, bool(copied))

    def row(name: str, result: dict[str, Any]) -> list[str]:
        figures = (result["weights"], result["before"], result["peak"], result["pss"])
        return [name, *(f"{x / GB:.2f}" for x in figures), f"{result['load_s']:.2f}", f"{result['read_s']:.2f}"]

    rows = [row("one rank", one[0])]
    rows += [row(f"two ranks: rank {rank}", result) for rank, result in enumerate(two)]
    rows += [row(f"two ranks, sharded: rank {rank}", result) for rank, result in enumerate(sharded)]
    rows += [row(f"two ranks, converted copy: rank {rank}", result) for rank, result in enumerate(copied)]
    head = ["", "weights", "peak before loading", "peak", "PSS", "load, s", "read all, s"]
    verdicts = [
        [c["name"], f"{c['measured'] / GB:.2f}", f"{c['allowed'] / GB:.2f}", "met" if c["met"] else "NOT MET"]
        for c in found
    ]
    text = (
        f"# Loading, host memory\n\n{describe_in_words(machine)}\n"
        f"Synthetic checkpoint, base stored in {options.stored}, loaded as bfloat16: dim {dim_of(SMALLER)}, "
        f"{SMALLER['num_layers']} blocks, ffn {SMALLER['ffn_dim']};\n"
        f"transformer {sizes['transformer'] / GB:.2f} GB in {sizes['transformer_files']} files, adapters and resampler "
        f"{sizes['adapters'] / GB:.2f} GB. Files warm in the page cache, one thread a rank.\n"
        "GB are 10⁹ bytes; peaks are VmHWM, imports of torch and all else included. Files are mapped, so that pages\n"
        "come in with the first reading of all weights rather than with the loading.\n\n"
        + table(head, rows) + "\n" + table(["criterion", "measured, GB", "allowed, GB", ""], verdicts)
    )  # fmt: skip
    print(text)
    if not options.no_record:
        name = "loading" if options.stored == "bfloat16" else f"loading_{options.stored}"
        configuration = {"model": SMALLER, "stored": options.stored, "dtype": "bfloat16", "files": sizes}
        data = {"machine": machine, "configuration": configuration, "one": one, "two": two, "sharded": sharded}
        data |= {"converted": copied} if copied else {}
        record(name, {**data, "criteria": found}, text)
    if not all(criterion["met"] for criterion in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
