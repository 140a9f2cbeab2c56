"""How much of two processes' rate two ranks of a gang reach, and what they send.

    python -m benchmarks.sequence_parallel

A transformer of dim 512 (8 heads, 8 blocks, feed-forward 2048), 3,600 tokens, fp32, random weights, 512 text tokens,
one thread a process, on the CPU. In each round, one after the other, in changing order:

- one: the whole forward in one process, the other process idle;
- ulysses, ring: the forward over two ranks;
- ideal: two processes side by side, each with one rank's work (half the queries over all keys) and no communication.

A figure during which other processes took more than a tenth of a core is measured again, a few times at most.

Criterion: two ranks reach ≥ 0.85 of the ideal's rate, medians over the rounds. Exits 1 if not. Bytes sent are counted
at torch's dispatcher, outside the code that sends them, and must equal the formulas.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from typing import Any

import psutil
import torch
import torch.multiprocessing as mp
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.machine import describe, describe_in_words, record, table
from benchmarks.shapes import WAN_14B, dim_of

CONFIG = {**WAN_14B, "num_attention_heads": 8, "attention_head_dim": 64, "ffn_dim": 2048, "num_layers": 8,
          "text_dim": 512}  # fmt: skip
LATENTS = (1, 16, 4, 60, 60)
TOKENS = 4 * 30 * 30
RANKS = 2
MODES = ("one", "ulysses", "ring", "ideal")
CRITERION = 0.85
QUIET, TRIES = 0.1, 8


def expected_bytes(mode: str, item: int = 4) -> dict[str, int]:
    """Bytes that a rank sends in one forward: in the blocks, and in the gather at the end.

    With N tokens, d channels, P ranks: Ulysses exchanges q, k, v and the output, 4·(N/P)·d·(P−1)/P numbers a layer; a
    ring sends K and V to all others, 2·(N/P)·d·(P−1); the gather sends (N/P)·64·(P−1) of the result.
    """
    shard, dim, layers = TOKENS // RANKS, dim_of(CONFIG), CONFIG["num_layers"]
    out = math.prod(CONFIG["patch_size"]) * CONFIG["out_channels"]
    numbers = {"ulysses": 4 * shard * dim * (RANKS - 1) // RANKS, "ring": 2 * shard * dim * (RANKS - 1)}[mode]
    return {"blocks": numbers * layers * item, "gather": shard * out * (RANKS - 1) * item}


class SentBytes(TorchDispatchMode):
    """Counts what this rank hands to collectives, by operator; a rank keeps its own part of an exchange."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            name = func.overloadpacket.__name__
            if name == "all_to_all_single":
                self._add(name, args[0], (RANKS - 1) / RANKS)
            elif name == "all_gather_into_tensor":
                self._add(name, args[0], RANKS - 1)
            elif name == "allgather_":
                self._add(name, args[1][0], RANKS - 1)
            elif name not in ("wait_tensor", "_wrap_tensor_autograd"):
                self.sent[name] = -1  # one that the formulas know nothing of
        return func(*args, **(kwargs or {}))

    def _add(self, name: str, tensor: torch.Tensor, times: float) -> None:
        self.sent[name] = self.sent.get(name, 0) + int(tensor.numel() * tensor.element_size() * times)


class Worker:
    """One process: the model, and a forward in any mode."""

    def __init__(self, rank: int, folder: str) -> None:
        from diffusers import WanTransformer3DModel

        from lynx_parallel.model.block import BlockConditioning
        from lynx_parallel.model.transformer import LynxTransformer

        self.rank, self.folder, self.joined = rank, folder, 0
        torch.manual_seed(0)
        wan = WanTransformer3DModel.from_config(CONFIG)
        for parameter in wan.parameters():
            parameter.data.normal_(0, 0.02)
        self.transformer = LynxTransformer(wan)
        self.latents, self.timestep = torch.randn(LATENTS), torch.tensor([500.0])
        text = torch.randn(1, 512, CONFIG["text_dim"])
        self.branch = [BlockConditioning(kv) for kv in self.transformer.text_kv(text)]
        self.keys = torch.randn(2, 1, TOKENS, CONFIG["num_attention_heads"], CONFIG["attention_head_dim"])

    def enter(self, mode: str) -> None:
        """Takes the token axis of a mode; joins a gang for those that need one, and opens its connections."""
        from torch.distributed import FileStore

        from lynx_parallel.inputs.layout import Layout
        from lynx_parallel.model.attention import LocalTokens
        from lynx_parallel.parallel import xdit

        if mode == "one":
            self.transformer.tokens = LocalTokens()
        elif mode == "ideal":
            self.transformer.tokens = _ideal_tokens(self.rank, self.keys)
        else:
            self.joined += 1
            store = FileStore(f"{self.folder}/store-{mode}-{self.joined}", RANKS)
            layout = Layout(ulysses=RANKS) if mode == "ulysses" else Layout(ring=RANKS)
            device = torch.device("cpu")
            membership = xdit.join(layout, rank=self.rank, store=store, device=device, transformer_config=CONFIG)
            self.transformer.tokens = membership.tokens
            self.transformer(self.latents[..., :4, :4].contiguous(), self.timestep, self.branch)

    def leave(self, mode: str) -> None:
        from lynx_parallel.parallel import xdit

        if mode in ("ulysses", "ring"):
            xdit.leave()

    def forward(self) -> tuple[float, float]:
        """Wall seconds and processor seconds of one forward."""
        began, used = time.perf_counter(), time.process_time()
        self.transformer(self.latents, self.timestep, self.branch)
        return time.perf_counter() - began, time.process_time() - used

    def count(self) -> tuple[dict[str, int], torch.Tensor]:
        with SentBytes() as counter:
            velocity = self.transformer(self.latents, self.timestep, self.branch)
        return counter.sent, velocity


def _ideal_tokens(rank: int, keys: torch.Tensor) -> Any:
    from lynx_parallel.model.attention import LocalTokens

    class IdealTokens(LocalTokens):
        """One rank's work alone: its own tokens, and the keys of all as if they had just arrived."""

        def split(self, x_BNC: torch.Tensor) -> torch.Tensor:
            shard = x_BNC.shape[1] // RANKS
            return x_BNC[:, rank * shard : (rank + 1) * shard].contiguous()

        def gather(self, x_BLC: torch.Tensor, length: int) -> torch.Tensor:
            return torch.cat([x_BLC] * RANKS, dim=1)

        def self_attention(
            self, q_BLHD: torch.Tensor, k_BLHD: torch.Tensor, v_BLHD: torch.Tensor, length: int
        ) -> torch.Tensor:
            return self.attention(q_BLHD, keys[0], keys[1])

    return IdealTokens()


def work(rank: int, folder: str, pipe: Connection) -> None:
    """A worker process: answers (method, arguments) with the method's result until told to stop."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    worker = Worker(rank, folder)
    pipe.send("ready")
    while (call := pipe.recv()) is not None:
        pipe.send(getattr(worker, call[0])(*call[1:]))


def call(pipes: list[Connection], *what: Any) -> list[Any]:
    for pipe in pipes:
        pipe.send(what)
    return [pipe.recv() for pipe in pipes]


def timed(members: list[Connection]) -> tuple[float, float]:
    """Seconds of one forward, of the slower process where two run; and the cores that others used meanwhile."""
    tries = []
    for _ in range(TRIES):
        began, busy = time.perf_counter(), _busy()
        answers = call(members, "forward")
        others = _busy() - busy - sum(used for _, used in answers)
        tries.append((others / (time.perf_counter() - began), max(seconds for seconds, _ in answers)))
        if tries[-1][0] <= QUIET:
            break
    others, seconds = min(tries)
    return seconds, others


def _busy() -> float:
    """Processor seconds that all of the machine's processes have used so far."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice


def run(rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, Any]]:
    """By mode and round: seconds a forward and cores used by others; and bytes counted."""
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ends = [context.Pipe() for _ in range(RANKS)]
        processes = [
            context.Process(target=work, args=(rank, folder, end[1]), daemon=True) for rank, end in enumerate(ends)
        ]
        for process in processes:
            process.start()
        pipes = [end[0] for end in ends]
        for pipe in pipes:
            pipe.recv()
        seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
        others: dict[str, list[float]] = {mode: [] for mode in MODES}
        counted: dict[str, Any] = {}
        call(pipes[:1], "enter", "one")
        whole = call(pipes[:1], "count")[0][1]
        for number in range(rounds):
            shift = number % len(MODES)
            for mode in MODES[shift:] + MODES[:shift]:
                members = pipes[:1] if mode == "one" else pipes
                call(members, "enter", mode)
                if number == 0 and mode in ("ulysses", "ring"):
                    counted[mode] = call(members, "count")
                figure, foreign = timed(members)
                seconds[mode].append(figure)
                others[mode].append(round(foreign, 3))
                call(members, "leave", mode)
            print(f"round {number + 1}/{rounds}: " + _seconds({mode: seconds[mode][-1] for mode in MODES}), flush=True)
        for pipe in pipes:
            pipe.send(None)
        for process in processes:
            process.join(60)
    sent = {}
    for mode, by_rank in counted.items():
        for bytes_sent, velocity in by_rank:
            error = ((velocity - whole).norm() / whole.norm()).item()
            assert error <= 1e-5, f"{mode}: relative error {error}: these ranks compute something else"
            found = {
                "blocks": sum(n for name, n in bytes_sent.items() if name != "allgather_"),
                "gather": bytes_sent["allgather_"],
            }
            assert found == expected_bytes(mode), f"{mode}: sent {bytes_sent}, expected {expected_bytes(mode)}"
        sent[mode] = {**found, "operators": by_rank[0][0]}
    return seconds, others, sent


def _seconds(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f} s" for name, value in values.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-record", action="store_true", help="leave results/ as it is")
    options = parser.parse_args()
    machine = describe()
    if machine["cores"] < RANKS:
        sys.exit(f"needs {RANKS} cores, this process may use {machine['cores']}")
    seconds, others, sent = run(options.rounds)
    medians = {mode: statistics.median(values) for mode, values in seconds.items()}
    efficiency = {mode: medians["ideal"] / medians[mode] for mode in ("ulysses", "ring")}
    met = {mode: value >= CRITERION for mode, value in efficiency.items()}

    rows = []
    for mode in MODES:
        spread = f"{min(seconds[mode]):.2f} … {max(seconds[mode]):.2f}"
        verdict = [f"{efficiency[mode]:.3f}", "met" if met[mode] else "NOT MET"] if mode in efficiency else ["", ""]
        rows.append([mode, f"{medians[mode]:.2f}", spread, f"{medians['one'] / medians[mode]:.2f}", *verdict])
        rows[-1].insert(3, f"{max(others[mode]):.2f}")
    head = [
        "",
        "s a forward, median",
        "least … most",
        "cores used by others, at most",
        "speed-up over one",
        "rate over ideal",
        f"≥ {CRITERION}",
    ]
    traffic = [
        [mode, *(f"{sent[mode][part] / 1e6:.3f}" for part in ("blocks", "gather")), "equal to the formula"]
        for mode in sent
    ]
    text = (
        f"# Two ranks against two processes\n\n{describe_in_words(machine)}\n"
        f"dim {dim_of(CONFIG)}, {CONFIG['num_attention_heads']} heads, {CONFIG['num_layers']} blocks, "
        f"ffn {CONFIG['ffn_dim']}, {TOKENS} tokens, 512 text tokens, fp32, "
        f"one thread a process,\ngloo over the loopback device; {options.rounds} rounds, modes interleaved.\n\n"
        + table(head, rows) + "\nBytes a rank sends in one forward, counted:\n\n"
        + table(["", "blocks, MB", "final gather, MB", ""], traffic)
    )  # fmt: skip
    print(text)
    if not options.no_record:
        configuration = {"model": CONFIG, "latents": LATENTS, "tokens": TOKENS, "rounds": options.rounds}
        data = {
            "machine": machine,
            "configuration": configuration,
            "seconds": seconds,
            "cores_of_others": others,
            "medians": medians,
        }
        record(
            "sequence_parallel",
            {**data, "rate_over_ideal": efficiency, "criterion": CRITERION, "met": met, "bytes_sent": sent},
            text,
        )
    if not all(met.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
