"""What static conditioning saves and costs: FLOPs, time, living parameters, borrowing, and spilling to disk.

    python -m benchmarks.conditioning

Random models on the CPU. Criteria, exit 1 if one fails:

- FLOPs of one forward, counted operator by operator, equal the closed formula, with static keys and values and without
  ("without" projects text, ID tokens and reference features anew in every forward, as a model without them does);
- bytes of living parameters in the middle of denoising equal those foretold from shapes, projections kept and freed.

Times are medians of ``--rounds`` rounds in which all modes take turns.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.conditioning_report import report
from benchmarks.flops import ID, REF, REGISTERS, TEXT, counted, forward_flops, reference_flops, static_flops
from benchmarks.machine import describe, record
from benchmarks.shapes import WAN_14B, Shapes, dim_of, id_shapes, model_shapes, ref_shapes, transformer_shapes
from lynx_parallel.demo.tiny import SCHEDULER
from lynx_parallel.inputs.memory import parameter_bytes, static_kv_bytes
from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.inputs.weight_files import WeightFiles
from lynx_parallel.model.block import BlockConditioning
from lynx_parallel.model.checkpoints import build_transformer, load_transformer
from lynx_parallel.model.experts import Experts
from lynx_parallel.model.transformer import Branch, LynxTransformer
from lynx_parallel.pipeline import LynxPipeline, ShotInputs

COUNTED = {**WAN_14B, "num_attention_heads": 8, "attention_head_dim": 64, "ffn_dim": 2048, "num_layers": 8}
"""The model of FLOPs and seconds a forward: dim 512."""
STORED = {**WAN_14B, "num_attention_heads": 8, "ffn_dim": 2816, "num_layers": 8}
"""The model that lies in files: dim 1024, feed-forward in the 14B's proportion."""
LATENTS = (1, 16, 5, 40, 40)  # 2,000 tokens
SHOT_LATENTS = (1, 16, 1, 16, 16)  # 64 tokens: living parameters do not depend on them
TOKENS_14B = 21 * 30 * 52  # 81 frames of 832×480
PROJECTIONS = {
    "text": (".attn2.to_k.", ".attn2.to_v."),
    "identity": (".id_adapter.",),
    "reference": (".ref_adapter.",),
}
"""Written down here, so that the model's own list can be held against it."""


def tokens_of(latents: tuple[int, ...]) -> int:
    return latents[2] * (latents[3] // 2) * (latents[4] // 2)


def projections(config: dict[str, Any], kind: str | None = None) -> Shapes:
    """Shapes of the projections behind static keys and values, of one kind or all."""
    names = PROJECTIONS[kind] if kind else tuple(name for names in PROJECTIONS.values() for name in names)
    return {key: shape for key, shape in model_shapes(config).items() if any(name in key for name in names)}


def conditioning(config: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Random text embeddings, ID tokens and reference features."""
    torch.manual_seed(1)
    d = dim_of(config)
    features = [torch.randn(1, REF, d) for _ in range(config["num_layers"])]
    return torch.randn(1, TEXT, config["text_dim"]), torch.randn(1, ID, d), features


def make_branch(transformer: LynxTransformer, text: Any, id_tokens: Any, features: Any) -> Branch:
    made = transformer.text_kv(text), transformer.identity_kv(id_tokens), transformer.reference_kv(features)
    return [BlockConditioning(*kv) for kv in zip(*made, strict=True)]


def random_transformer(config: dict[str, Any]) -> LynxTransformer:
    """Weights drawn, everything else as loading leaves it."""
    torch.manual_seed(0)
    adapters = {key: shape for key, shape in model_shapes(config).items() if "_adapter." in key}
    transformer = build_transformer(config, adapters)
    state = {key: torch.empty(t.shape).normal_(0, 0.02) for key, t in transformer.state_dict().items()}
    transformer.load_state_dict(state, assign=True)
    transformer.requires_grad_(False)
    rope = type(transformer.rope)
    transformer.rope = rope(config["attention_head_dim"], tuple(config["patch_size"]), config["rope_max_seq_len"])
    return transformer


def take_turns(modes: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Wall and processor seconds of every mode, round by round, each round in another order; one round unrecorded."""
    found: dict[str, dict[str, list[float]]] = {name: {"wall": [], "processor": []} for name in modes}
    names = list(modes)
    for name in names:
        modes[name]()
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            began, used = time.perf_counter(), time.process_time()
            modes[name]()
            found[name]["processor"].append(time.process_time() - used)
            found[name]["wall"].append(time.perf_counter() - began)
    return found


def forwards(rounds: int) -> dict[str, Any]:
    """FLOPs and seconds of a forward, with static keys and values and without."""
    transformer = random_transformer(COUNTED)
    source = conditioning(COUNTED)
    latents, timestep = torch.randn(LATENTS), torch.tensor([500.0])
    branch = make_branch(transformer, *source)

    def static() -> torch.Tensor:
        return transformer(latents, timestep, branch)

    def anew() -> torch.Tensor:
        return transformer(latents, timestep, make_branch(transformer, *source))

    assert torch.equal(static(), anew()), "with and without static keys and values give different velocities"
    with_static = forward_flops(COUNTED, tokens_of(LATENTS))
    without = with_static | static_flops(COUNTED)
    flops = {
        "with": {"counted": counted(static), "formula": sum(with_static.values())},
        "without": {"counted": counted(anew), "formula": sum(without.values())},
    }
    return {"parts": without, "flops": flops, "seconds": take_turns({"with": static, "without": anew}, rounds)}


# Memory: fresh processes, so that the kernel's figures are of one mode alone.


def write_checkpoints(folders: dict[str, Path]) -> dict[str, WeightFiles]:
    """``STORED``'s random weights in files, once a dtype; the numbers are bf16's in all of them."""
    generator = torch.Generator().manual_seed(0)
    written = {name: files_under(folder) for name, folder in folders.items()}

    def save(path_of: Callable[[WeightFiles], Path], shapes: Shapes) -> None:
        drawn = {k: torch.empty(s).uniform_(-0.05, 0.05, generator=generator).bfloat16() for k, s in shapes.items()}
        for name, files in written.items():
            path_of(files).parent.mkdir(parents=True, exist_ok=True)
            save_file({key: value.to(getattr(torch, name)) for key, value in drawn.items()}, path_of(files))

    save(lambda f: f.base / "transformer" / "diffusion_pytorch_model.safetensors", transformer_shapes(STORED))
    save(lambda f: f.id, id_shapes(STORED, "full", "reference"))
    save(lambda f: f.ref or f.id, ref_shapes(STORED, "reference"))
    save(lambda f: f.resampler, {"unused": (1,)})  # asked for by name, not by this model
    for files in written.values():
        (files.base / "transformer" / "config.json").write_text(json.dumps(STORED))
    return written


def files_under(folder: Path) -> WeightFiles:
    return WeightFiles(folder / "wan", *(folder / f"{name}.safetensors" for name in ("resampler", "id", "ref")))


def living_tensors() -> dict[str, int]:
    """Bytes of all parameters and of all other tensors that this process holds, found by the garbage collector."""
    gc.collect()
    parameters: dict[int, int] = {}
    others: dict[int, int] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.device.type != "meta":
            if issubclass(type(thing), torch.nn.Parameter):
                parameters[thing.data_ptr()] = thing.nbytes
            else:
                others[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return {"parameters": sum(parameters.values()), "others": sum(others.values())}


def kernel_says(file: str, *fields: str) -> dict[str, int]:
    with open(f"/proc/self/{file}") as lines:
        found = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
    return {field: int(found[field].split()[0]) * 1024 for field in fields}


def denoise_and_look(folder: Path, keep: bool) -> dict[str, Any]:
    """A shot of three branches and two steps; what lives after its first step."""
    d, text_dim = dim_of(STORED), STORED["text_dim"]
    imported = kernel_says("status", "RssAnon")["RssAnon"]
    transformer = load_transformer(files_under(folder), dtype=torch.float32, keep_projections=keep)
    pipeline = LynxPipeline(
        base=folder, experts=Experts([transformer]), resampler=None, vae=None, scheduler_config=SCHEDULER,
        dtype=torch.float32, device=torch.device("cpu"),
    )  # fmt: skip
    torch.manual_seed(2)
    inputs = ShotInputs(  # type: ignore[call-arg]
        torch.randn(SHOT_LATENTS),
        *(torch.randn(1, TEXT, text_dim) for _ in range(2)),
        *(torch.randn(1, ID, d) for _ in range(2)),
        torch.randn(1, TEXT, text_dim),
        *(torch.randn(1, 16, 1, 32, 32) for _ in range(2)),
    )
    seen: dict[str, Any] = {"imported": imported}

    def look(step: Any) -> None:
        if step.index == 0:
            seen.update(living_tensors())
            seen.update(kernel_says("status", "VmRSS", "RssAnon", "VmHWM") | kernel_says("smaps_rollup", "Pss"))

    latents = pipeline.denoise(inputs, Sampling(num_inference_steps=2), look)
    return seen | {"result": hashlib.sha256(latents.numpy().tobytes()).hexdigest()}


def in_a_process(folder: Path, keep: bool, threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.conditioning", "--folder", str(folder), "--threads", str(threads)]
    done = subprocess.run([*command, *["--keep"] * keep], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# Borrowing and spilling.


def borrowing(files: dict[str, WeightFiles], rounds: int) -> dict[str, Any]:
    """Seconds of making keys and values by kind and by where the projections are; and of the reference features."""
    text, id_tokens, features = conditioning(STORED)
    latents = torch.randn(1, 16, 1, 32, 32)

    def load(stored: str, keep: bool) -> LynxTransformer:
        return load_transformer(files[stored], dtype=torch.float32, keep_projections=keep)

    models = {"kept": load("bfloat16", True), "bf16": load("bfloat16", False), "fp32": load("float32", False)}
    face = models["kept"].text_kv(text)  # of "image of a face": one for all subjects, kept in memory
    seconds: dict[str, Any] = {}
    works: dict[str, Callable[[LynxTransformer], Any]] = {
        "text": lambda model: model.text_kv(text),
        "identity": lambda model: model.identity_kv(id_tokens),
        "reference": lambda model: model.reference_kv(features),
    }
    for kind, work in works.items():
        made = {name: work(model) for name, model in models.items()}
        for name in ("bf16", "fp32"):
            pairs = zip(made["kept"], made[name], strict=True)
            assert all(torch.equal(*both) for kept, got in pairs for both in zip(kept, got, strict=True)), (kind, name)
        seconds[kind] = take_turns({n: lambda w=work, m=model: w(m) for n, model in models.items()}, rounds)

    def both(model: LynxTransformer) -> Any:
        return model.reference_kv(model.reference_features(latents, face))

    flops = counted(lambda: both(models["kept"]))
    recompute: dict[str, Callable[[], Any]] = {
        "features": lambda: models["kept"].reference_features(latents, face),
        "features and K/V, projections kept": lambda: both(models["kept"]),
        "features and K/V, borrowed from bf16": lambda: both(models["bf16"]),
    }
    return {"seconds": seconds, "recompute": take_turns(recompute, rounds), "flops": flops}


def spilling(folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of putting reference features, K/V or both on disk to stay, and of mapping and reading them again."""
    d, blocks = dim_of(STORED), STORED["num_layers"]
    found: dict[str, Any] = {}
    for name, each in {"features": 1, "K/V": 2, "features and K/V": 3}.items():
        tensors = {f"{i}.{n}": torch.randn(1, REF, d) for i in range(blocks) for n in range(each)}
        path = folder / "spilled.safetensors"

        def write(tensors: Any = tensors, path: Path = path) -> None:
            save_file(tensors, path)
            with path.open("rb") as file:
                os.fsync(file.fileno())

        def read(path: Path = path) -> None:
            with safe_open(path, "pt") as file:
                for key in file.keys():
                    file.get_tensor(key).clone()

        times: dict[str, dict[str, list[float]]] = {"write": {"wall": []}, "read": {"wall": []}, "cold": {"wall": []}}
        for number in range(rounds + 1):
            for what, work in {"write": write, "read": read, "cold": read}.items():
                if what == "cold":
                    with path.open("rb") as file:
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                began = time.perf_counter()
                work()
                if number:  # the first round warms up
                    times[what]["wall"].append(time.perf_counter() - began)
            path.unlink()
        found[name] = {"bytes": sum(t.nbytes for t in tensors.values()), "seconds": times}
    return found


def filesystem(folder: Path) -> str:
    """Kind of the file system that a folder lies on."""
    mounts = [m for m in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(m.mountpoint)]
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch; two, or one where the machine is busy, if not given")
    parser.add_argument("--no-record", action="store_true", help="leave results/ as it is")
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # for the processes this one starts
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    machine = describe()
    busy = machine["load_before"] >= 1
    threads = options.threads or min(1 if busy else 2, machine["cores"])
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    if options.folder:
        print(json.dumps(denoise_and_look(Path(options.folder), options.keep)))
        return
    began = time.perf_counter()
    forward = forwards(options.rounds)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        disk = filesystem(folder)
        files = write_checkpoints({name: folder / name for name in ("bfloat16", "float32")})
        memory = {name: in_a_process(folder / "bfloat16", name == "kept", threads) for name in ("kept", "freed")}
        borrowed = borrowing(files, options.rounds)
        spilled = spilling(folder, options.rounds)
    assert memory["kept"].pop("result") == memory["freed"].pop("result"), "kept and freed give different latents"

    bytes_14b = {kind: parameter_bytes(projections(WAN_14B, kind), 2) for kind in PROJECTIONS}
    all_14b = parameter_bytes(model_shapes(WAN_14B), 2)
    foretold = {
        "kept": parameter_bytes(model_shapes(STORED), 4),
        "freed": parameter_bytes(model_shapes(STORED), 4) - parameter_bytes(projections(STORED), 4),
    }
    verdicts = [
        (f"FLOPs of a forward, {mode} static K/V", figures["counted"], figures["formula"])
        for mode, figures in forward["flops"].items()
    ]
    verdicts += [("FLOPs of reference features and K/V", borrowed.pop("flops"), reference_flops(STORED, kv=True))]
    verdicts += [
        (f"bytes of living parameters, projections {mode}", memory[mode]["parameters"], foretold[mode])
        for mode in memory
    ]
    verdicts += [
        (
            "bytes freed",
            memory["kept"]["parameters"] - memory["freed"]["parameters"],
            parameter_bytes(projections(STORED), 4),
        )
    ]
    data = {
        "machine": machine,
        "threads": threads,
        "file_system": disk,
        "configuration": {
            "counted": COUNTED, "stored": STORED, "latents": LATENTS, "tokens": tokens_of(LATENTS),
            "text_tokens": TEXT, "id_tokens": ID, "registers": REGISTERS, "reference_tokens": REF,
            "rounds": options.rounds,
            "projection_bytes": {kind: parameter_bytes(projections(STORED, kind), 4) for kind in PROJECTIONS},
        },
        "forward": forward,
        "memory": memory,
        "borrowing": borrowed,
        "spilling": spilled,
        "computed_14b": {
            "projection_bytes": bytes_14b,
            "parameter_bytes": all_14b,
            "static_kv_bytes": static_kv_bytes(model_shapes(WAN_14B), ("c", "i", "u"), 2),
            "forward_flops": sum(forward_flops(WAN_14B, TOKENS_14B).values()),
            "static_flops": sum(static_flops(WAN_14B).values()),
            "reference_flops": {what: reference_flops(WAN_14B, kv=what == "K/V") for what in ("features", "K/V")},
            "features_bytes": WAN_14B["num_layers"] * REF * dim_of(WAN_14B) * 2,
        },
        "criteria": [{"name": n, "measured": got, "foretold": want, "met": got == want} for n, got, want in verdicts],
    }  # fmt: skip
    data["load_after"] = round(os.getloadavg()[0], 2)
    data["seconds_of_the_run"] = round(time.perf_counter() - began, 1)
    text = report(data)
    print(text)
    if not options.no_record:
        record("conditioning", data, text)
    if not all(criterion["met"] for criterion in data["criteria"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
