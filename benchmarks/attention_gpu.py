"""Seconds and TFLOP/s of a whole forward of the 14B by attention kernel, and peak memory. For CUDA machines.

    python -m benchmarks.attention_gpu

All 40 blocks at their true shapes, random bf16 weights made on the device, 32,760 tokens (832×480×81), one branch
with text, ID and reference keys and values. Writes results/attention_gpu.{json,md}. Without a CUDA device it measures
nothing and exits 0. ``--tiny`` runs the same code on a small model on any device: a check of the code, no measurement,
and never recorded.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any, get_args

import torch

from benchmarks.machine import describe, describe_in_words, record, table
from benchmarks.shapes import WAN_14B, dim_of
from lynx_parallel.errors import ClusterError
from lynx_parallel.model.attention import AttentionName, LocalTokens, choose_kernel
from lynx_parallel.model.block import KV, BlockConditioning
from lynx_parallel.model.checkpoints import _stays_fp32, build_transformer
from lynx_parallel.model.transformer import Branch, LynxTransformer

TINY = {**WAN_14B, "num_attention_heads": 4, "attention_head_dim": 24, "ffn_dim": 192, "num_layers": 2, "text_dim": 64}
LATENTS, TINY_LATENTS = (1, 16, 21, 60, 104), (1, 16, 3, 6, 6)
TEXT_TOKENS, ID_TOKENS, REF_TOKENS = 512, 32, 256


def random_transformer(config: dict[str, Any], device: torch.device) -> LynxTransformer:
    """The base with random weights, each made on the device in its final type."""
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

    transformer = build_transformer(config, {})
    state = {}
    for name, empty in transformer.state_dict().items():
        dtype = torch.float32 if _stays_fp32(name) else torch.bfloat16
        state[name] = torch.empty(empty.shape, dtype=dtype, device=device).normal_(0, 0.02)
    transformer.load_state_dict(state, strict=True, assign=True)
    transformer.rope = WanRotaryPosEmbed(
        config["attention_head_dim"], tuple(config["patch_size"]), config["rope_max_seq_len"]
    ).to(device)
    return transformer


def random_branch(config: dict[str, Any], device: torch.device) -> Branch:
    def kv(tokens: int) -> KV:
        shape = (2, 1, tokens, config["num_attention_heads"], config["attention_head_dim"])
        return KV(*torch.randn(shape, device=device, dtype=torch.bfloat16))

    return [
        BlockConditioning(kv(TEXT_TOKENS), kv(ID_TOKENS), kv(REF_TOKENS)) for _ in range(config["num_layers"])
    ]  # fmt: skip


def flop(config: dict[str, Any], tokens: int) -> float:
    """Of the matrix products of one forward: blocks × (8Nd² + 4N²d + 4Nd² + 4Ndf + 4NSd), S static keys.

    In order: self-attention's projections, self-attention, cross-attention's Q and O, feed-forward, attention to text,
    ID and reference. The keys and values of these three are made before and do not count.
    """
    dim, ffn = dim_of(config), config["ffn_dim"]
    static = TEXT_TOKENS + ID_TOKENS + REF_TOKENS
    return config["num_layers"] * tokens * dim * (12.0 * dim + 4 * tokens + 4 * ffn + 4 * static)


@torch.no_grad()
def measure(transformer: LynxTransformer, branch: Branch, latents: torch.Tensor, repeats: int) -> dict[str, Any]:
    """Seconds of each forward after two that are not counted, and the peak of allocated memory."""
    cuda = latents.device.type == "cuda"

    def synchronize() -> None:
        if cuda:
            torch.cuda.synchronize()

    timestep = torch.tensor([500.0], device=latents.device)
    seconds = []
    for number in range(2 + repeats):
        if cuda and number == 2:
            torch.cuda.reset_peak_memory_stats()
        synchronize()
        began = time.perf_counter()
        velocity = transformer(latents, timestep, branch)
        synchronize()
        if number >= 2:
            seconds.append(time.perf_counter() - began)
    assert velocity.isfinite().all()
    return {"seconds": seconds, "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a small model on any device: checks the code alone")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.tiny:
        print("no CUDA device: nothing measured")
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config, shape = (TINY, TINY_LATENTS) if options.tiny else (WAN_14B, LATENTS)
    tokens = shape[2] * shape[3] * shape[4] // 4
    machine = describe()
    transformer, branch = random_transformer(config, device), random_branch(config, device)
    latents = torch.randn(shape, device=device, dtype=torch.bfloat16)

    measured: dict[str, dict[str, Any]] = {}
    for name in get_args(AttentionName):
        if name == "auto":
            continue
        try:
            kernel = choose_kernel(name, device, torch.bfloat16).attention
        except ClusterError as error:
            print(error)
            continue
        transformer.tokens = LocalTokens(kernel)
        made = measure(transformer, branch, latents, options.repeats)
        median = statistics.median(made["seconds"])
        measured[name] = {**made, "median": median, "tflop_per_s": flop(config, tokens) / median / 1e12}
    if options.tiny:
        print(f"code path of {', '.join(measured)} on {device.type}: works. Tiny model: no figure here means anything.")
        return

    rows = [
        [name, f"{made['median']:.3f}", f"{min(made['seconds']):.3f} … {max(made['seconds']):.3f}",
         f"{made['tflop_per_s']:.0f}", f"{made['peak_bytes'] / 1e9:.1f}"]
        for name, made in measured.items()
    ]  # fmt: skip
    auto = choose_kernel("auto", device, torch.bfloat16).name
    text = (
        f"# One forward of the 14B by attention kernel\n\n{describe_in_words(machine)}\n"
        f"40 blocks, {tokens} tokens, bf16, random weights, {options.repeats} forwards after two to warm up; "
        f"{flop(config, tokens) / 1e12:.0f} TFLOP a forward.\n`--attention auto` takes {auto} here. "
        "Peak: allocated memory, base weights and one branch's static K/V included, adapters not.\n\n"
        + table(["kernel", "s, median", "least … most", "TFLOP/s", "peak, GB"], rows)
    )
    print(text)
    configuration = {"model": config, "latents": shape, "tokens": tokens, "repeats": options.repeats}
    record("attention_gpu", {"machine": machine, "configuration": configuration, "measured": measured}, text)


if __name__ == "__main__":
    main()
