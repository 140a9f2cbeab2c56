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
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks.machine import describe, describe_in_words, record, table
from benchmarks.shapes import WAN_14B, Shapes, dim_of, id_shapes, model_shapes, ref_shapes, transformer_shapes
from lynx_parallel.demo.tiny import SCHEDULER
from lynx_parallel.model.block import BlockConditioning
from lynx_parallel.model.checkpoints import build_transformer, load_transformer
from lynx_parallel.model.transformer import Branch, LynxTransformer
from lynx_parallel.parallel.memory import parameter_bytes, static_kv_bytes
from lynx_parallel.pipeline import LynxPipeline, ShotInputs
from lynx_parallel.spec.pipeline import Sampling
from lynx_parallel.weights import WeightFiles

COUNTED = {**WAN_14B, "num_attention_heads": 8, "attention_head_dim": 64, "ffn_dim": 2048, "num_layers": 8}
"""The model of FLOPs and seconds a forward: dim 512."""
STORED = {**WAN_14B, "num_attention_heads": 8, "ffn_dim": 2816, "num_layers": 12}
"""The model that lies in files: dim 1024, feed-forward in the 14B's proportion."""
TEXT, ID, REGISTERS, REF = 512, 16, 16, 256
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


# FLOPs: two for a multiply-add; what a matrix product, a convolution or an attention does, nothing element-wise.


def forward_flops(config: dict[str, Any], tokens: int, *, adapters: bool = True, output: bool = True) -> dict[str, int]:
    """One forward of one branch with static keys and values, by part.

    Args:
        adapters: whether ID and reference act; not so in the reference pass.
        output: False for the reference pass, which stops at the last block.
    """
    d, f, n, blocks = dim_of(config), config["ffn_dim"], tokens, config["num_layers"]
    patch = prod(config["patch_size"])
    return {
        "patch embedding 2N·c·p·d": 2 * n * config["in_channels"] * patch * d,
        "time embedding 2(256d + 7d²)": 2 * (config["freq_dim"] * d + 7 * d * d),
        "self-attention, projections 8Nd²": blocks * 8 * n * d * d,
        "self-attention 4N²d": blocks * 4 * n * n * d,
        "cross-attention, Q and O 4Nd²": blocks * 4 * n * d * d,
        "attention to text 4N·512·d": blocks * 4 * n * TEXT * d,
        "attention to ID 4N·32·d": blocks * 4 * n * (ID + REGISTERS) * d * adapters,
        "attention to the reference 4N·256·d": blocks * 4 * n * REF * d * adapters,
        "feed-forward 4Ndf": blocks * 4 * n * d * f,
        "output projection 2N·d·c·p": 2 * n * d * config["out_channels"] * patch * output,
    }


def static_flops(config: dict[str, Any]) -> dict[str, int]:
    """What making the static keys and values of one branch takes, given text, ID tokens and reference features."""
    d, blocks = dim_of(config), config["num_layers"]
    return {
        "text embedder 2·512(t·d + d²)": 2 * TEXT * (config["text_dim"] * d + d * d),
        "text K/V 4·512·d²": blocks * 4 * TEXT * d * d,
        "ID K/V 4·32·d²": blocks * 4 * (ID + REGISTERS) * d * d,
        "reference K/V 4·256·d²": blocks * 4 * REF * d * d,
    }


def counted(work: Callable[[], Any]) -> int:
    """FLOPs of the operators that ``work`` runs."""

    def attention(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return sdpa_flop_count(q, k, v)

    # torch's counter does not know the CPU's attention kernel.
    mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        work()
    return counter.get_total_flops()


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


def median(times: dict[str, list[float]], clock: str = "wall") -> float:
    return statistics.median(times[clock])


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


def write_checkpoint(folder: Path, dtype: torch.dtype) -> WeightFiles:
    """``STORED``'s random weights in files; the numbers are bf16's in either dtype."""

    def save(path: Path, shapes: Shapes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(0)
        drawn = {k: torch.empty(shape).uniform_(-0.05, 0.05, generator=generator) for k, shape in shapes.items()}
        save_file({key: value.bfloat16().to(dtype) for key, value in drawn.items()}, path)

    base = folder / "wan" / "transformer"
    save(base / "diffusion_pytorch_model.safetensors", transformer_shapes(STORED))
    (base / "config.json").write_text(json.dumps(STORED))
    weights = files_under(folder)
    assert weights.ref is not None
    save(weights.id, id_shapes(STORED, "full", "reference"))
    save(weights.ref, ref_shapes(STORED, "reference"))
    save(weights.resampler, {"unused": (1,)})  # the model's files are complete without it
    return weights


def files_under(folder: Path) -> WeightFiles:
    return WeightFiles(folder / "wan", *(folder / f"{name}.safetensors" for name in ("resampler", "id", "ref")))


def living_tensors() -> dict[str, int]:
    """Bytes of all parameters and of all other tensors that this process holds, found by the garbage collector."""
    gc.collect()
    parameters: dict[int, int] = {}
    others: dict[int, int] = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.device.type != "meta":
            if isinstance(thing, torch.nn.Parameter):
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
        base=folder, transformer=transformer, resampler=None, vae=None, scheduler_config=SCHEDULER,
        dtype=torch.float32, device=torch.device("cpu"),
    )  # fmt: skip
    torch.manual_seed(2)
    inputs = ShotInputs(
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

    models = {"kept": load("bf16", True), "bf16": load("bf16", False), "fp32": load("fp32", False)}
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


def reference_flops(config: dict[str, Any]) -> int:
    """The pass over a face crop, to features and K/V."""
    passing = forward_flops(config, REF, adapters=False, output=False)
    return sum(passing.values()) + static_flops(config)["reference K/V 4·256·d²"]


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
        files = {
            "bf16": write_checkpoint(folder / "bf16", torch.bfloat16),
            "fp32": write_checkpoint(folder / "fp32", torch.float32),
        }
        memory = {name: in_a_process(folder / "bf16", name == "kept", threads) for name in ("kept", "freed")}
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
    verdicts += [("FLOPs of reference features and K/V", borrowed.pop("flops"), reference_flops(STORED))]
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
            "reference_flops": reference_flops(WAN_14B),
        },
        "criteria": [{"name": n, "measured": got, "foretold": want, "met": got == want} for n, got, want in verdicts],
    }  # fmt: skip
    data["seconds_of_the_run"] = round(time.perf_counter() - began, 1)
    text = report(data)
    print(text)
    if not options.no_record:
        record("conditioning", data, text)
    if not all(criterion["met"] for criterion in data["criteria"]):
        raise SystemExit(1)


def report(data: dict[str, Any]) -> str:
    """All tables, as Markdown."""
    forward, memory, big = data["forward"], data["memory"], data["computed_14b"]
    borrowed, spilled = data["borrowing"], data["spilling"]
    size = f"dim {{}}, {{}} blocks, ffn {{}}"
    small = size.format(dim_of(COUNTED), COUNTED["num_layers"], COUNTED["ffn_dim"])
    stored = size.format(dim_of(STORED), STORED["num_layers"], STORED["ffn_dim"])
    rounds, threads = data["configuration"]["rounds"], data["threads"]

    def milliseconds(seconds: float) -> str:
        return f"{seconds * 1e3:.1f}"

    verdicts = [
        [c["name"], f"{c['measured']:,}", f"{c['foretold']:,}", "equal" if c["met"] else "NOT EQUAL"]
        for c in data["criteria"]
    ]

    whole = sum(forward["parts"].values())
    parts = [[name, f"{n / 1e9:.3f}", f"{n / whole:.2%}"] for name, n in forward["parts"].items()]
    flops = forward["flops"]["without"]["counted"] / forward["flops"]["with"]["counted"]
    ratios = {}
    for clock in ("wall", "processor"):
        pairs = zip(*(forward["seconds"][mode][clock] for mode in ("with", "without")), strict=True)
        ratios[clock] = sorted(without / static for static, without in pairs)
    times = [
        [
            f"{mode} static K/V",
            f"{forward['flops'][mode]['counted'] / 1e9:.2f}",
            f"{median(forward['seconds'][mode]):.3f}",
            f"{min(forward['seconds'][mode]['wall']):.3f} … {max(forward['seconds'][mode]['wall']):.3f}",
            f"{median(forward['seconds'][mode], 'processor'):.3f}",
        ]
        for mode in ("with", "without")
    ]
    spread = {clock: f"{values[0]:.3f} … {values[-1]:.3f}" for clock, values in ratios.items()}
    times.append(
        [
            "without / with, median of the rounds' ratios",
            f"{flops:.4f}",
            f"{statistics.median(ratios['wall']):.4f}",
            spread["wall"],
            f"{statistics.median(ratios['processor']):.4f}",
        ]
    )
    per_rank = [
        [
            str(ranks),
            f"{big['forward_flops'] / ranks / 1e12:.1f}",
            f"{big['static_flops'] / 1e12:.2f}",
            f"{big['static_flops'] / (big['forward_flops'] / ranks):.2%}",
        ]
        for ranks in (1, 2, 4, 8)
    ]

    head = {
        "parameters": "living parameters", "others": "other tensors", "RssAnon": "anonymous RSS",
        "VmRSS": "RSS", "Pss": "PSS", "VmHWM": "peak RSS since start", "imported": "anonymous RSS before loading",
    }  # fmt: skip
    rows = [[f"projections {m}", *(f"{memory[m][key] / 1e6:.1f}" for key in head)] for m in memory]
    difference = {key: memory["kept"][key] - memory["freed"][key] for key in head}
    rows.append(["difference", *(f"{difference[key] / 1e6:.1f}" for key in head)])
    share = 1 - memory["freed"]["parameters"] / memory["kept"]["parameters"]
    projected = sum(big["projection_bytes"].values())
    large = [[kind, f"{n / 1e9:.2f}"] for kind, n in big["projection_bytes"].items()]
    large += [["together", f"{projected / 1e9:.2f}"], ["all parameters", f"{big['parameter_bytes'] / 1e9:.2f}"]]
    large += [["share", f"{projected / big['parameter_bytes']:.1%}"]]

    lending = []
    for kind, by_mode in borrowed["seconds"].items():
        kept = median(by_mode["kept"])
        read = parameter_bytes(projections(STORED, kind), 4) / 1e6
        cells = [milliseconds(kept), *(milliseconds(median(by_mode[name])) for name in ("bf16", "fp32"))]
        more = [f"{median(by_mode[name]) / kept:.2f}" for name in ("bf16", "fp32")]
        lending.append([kind, f"{read:.1f}", *cells, *more])

    again = [[name, milliseconds(median(times))] for name, times in borrowed["recompute"].items()]
    disk = []
    rate = 0.0
    for name, found in spilled.items():
        write, read, cold = (median(found["seconds"][what]) for what in ("write", "read", "cold"))
        rate = found["bytes"] / (write + read)
        cells = [milliseconds(t) for t in (write, read, write + read, cold)]
        disk.append([name, f"{found['bytes'] / 1e6:.1f}", *cells, f"{rate / 1e6:.0f}"])
    pairs = [
        ("features", "features"),
        ("features and K/V", "features and K/V, projections kept"),
        ("K/V", "features and K/V, borrowed from bf16"),
    ]
    contest = []
    for on_disk, anew in pairs:
        seconds = spilled[on_disk]["seconds"]
        there_and_back = median(seconds["write"]) + median(seconds["read"])
        recomputed = median(borrowed["recompute"][anew])
        faster = "disk" if there_and_back < recomputed else "recomputing"
        quotient = max(there_and_back, recomputed) / min(there_and_back, recomputed)
        contest.append([f"{on_disk} on disk ↔ {anew}", f"{faster}, by {quotient:.1f}×"])
    features_14b = WAN_14B["num_layers"] * REF * dim_of(WAN_14B) * 2
    needed = [big["reference_flops"] / (times * features_14b / rate) for times in (1, 2, 3)]
    return (
        f"# Static conditioning\n\n{describe_in_words(data['machine'])}\n"
        f"{threads} thread{'s' * (threads > 1)}; medians of {rounds} rounds, modes taking turns, one round before them "
        f"unrecorded; run {data['seconds_of_the_run']:.0f} s.\nRandom weights, fp32, batch 1; {TEXT} text tokens of "
        f"{COUNTED['text_dim']}, {ID} + {REGISTERS} ID tokens, {REF} reference tokens. MB and GB are 10⁶ and 10⁹ bytes."
        "\n\n## Criteria\n\n" + table(["", "counted", "formula", ""], verdicts)
        + f"\n## A forward\n\n{small}, {tokens_of(LATENTS):,} tokens. *With* static K/V: made once, before the "
        "forward. *Without*: the text embedder and\nall projections of text, ID tokens and reference features run in "
        "every forward; the features themselves do not.\nBoth give the same bits.\n\n"
        + table(["", "GFLOP", "s, wall", "least … most", "s, processor"], times)
        + f"\nProcessor seconds' ratio, least … most: {spread['processor']}.\n\n"
        + table(["part", "GFLOP", "share"], parts)
        + f"\nThe last {len(static_flops(COUNTED))} rows are what static K/V save.\n\n"
        f"Computed, not measured: the same formula at 14B, 832×480×81 ({TOKENS_14B:,} tokens), when sequence "
        "parallelism divides a\nforward while every rank would project all of the conditioning.\n\n"
        + table(["ranks", "forward with static K/V, TFLOP a rank", "projections, TFLOP a rank", "more"], per_rank)
        + f"\n## Living parameters\n\n{stored}; stored in bf16, loaded as fp32; each row a process of its own, after "
        "the first step of a shot of three branches.\nAnonymous RSS leaves out mapped files, whose pages the kernel "
        "can take back. MB.\n\n"
        + table(["", *head.values()], rows)
        + f"\nOf the parameters, {share:.1%} were freed.\n\nComputed from shapes, not measured: 14B in bf16 "
        "(norms, time embedder and modulation in fp32), GB.\n\n"
        + table(["projections of", "GB"], large)
        + f"\nThe static K/V of a shot of three branches then take {big['static_kv_bytes'] / 1e9:.2f} GB, freed or "
        "kept.\n\n## Borrowing\n\n"
        f"{stored}. Milliseconds for the K/V of all blocks, text embedder included; files warm in the page cache. "
        "Borrowed\nfrom bf16: read, converted, let go. Borrowed from fp32: the file has the model's type, so that "
        "its pages are used in place.\n\n"
        + table(
            ["", "projections, MB in fp32", "kept", "borrowed, bf16", "borrowed, fp32", "bf16 / kept", "fp32 / kept"],
            lending,
        )
        + f"\nA prompt pays the row *text*, a subject the other two. At 14B in bf16 (computed) that is "
        f"{big['projection_bytes']['text'] / 1e9:.1f} GB read a prompt,\n"
        f"{(projected - big['projection_bytes']['text']) / 1e9:.1f} GB a subject.\n\n"
        f"## Reference features: again, or from disk\n\n{stored}, {REF} tokens; disk: {data['file_system']}. "
        "Written with fsync, read through a mapping, every page. *Dropped*: pages given\nback to the kernel before the "
        "reading; the machine below may still have them.\n\n"
        + table(["recomputed", "ms"], again) + "\n"
        + table(["on disk", "MB", "write, ms", "read, ms", "both, ms", "read, dropped, ms", "both, MB/s"], disk) + "\n"
        + table(["", "faster here"], contest)
        + f"\nComputed, not measured: at 14B in bf16 the pass and its K/V are {big['reference_flops'] / 1e12:.2f} "
        f"TFLOP, the features {features_14b / 1e6:.0f} MB, K/V {2 * features_14b / 1e6:.0f} MB.\nAt this disk's "
        f"{rate / 1e6:.0f} MB/s, written and read, recomputing is the faster from {needed[0] / 1e12:.1f} TFLOP/s on "
        f"(features), {needed[1] / 1e12:.1f} (K/V), {needed[2] / 1e12:.1f} (both),\nreading of borrowed weights not "
        f"counted; with freed projections, recomputing K/V also reads {big['projection_bytes']['reference'] / 1e9:.1f} "
        "GB of them.\n"
    )  # fmt: skip


if __name__ == "__main__":
    main()
