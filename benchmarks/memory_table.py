"""Predicts the memory of a rank of Wan2.1-T2V-14B with Lynx, and the cards on which it fits.

    python -m benchmarks.memory_table

No measurement: ``lynx_parallel.inputs.memory`` over the real files' shapes. Writes results/memory_14b.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from benchmarks.machine import RESULTS, table
from benchmarks.shapes import (
    LITE_ID_DIM,
    TEXT_ENCODER_BYTES,
    WAN_14B,
    dim_of,
    model_shapes,
    resampler_shapes,
)
from lynx_parallel.inputs.decode_memory import VideoSize
from lynx_parallel.inputs.layout import Layout
from lynx_parallel.inputs.memory import ALLOWANCE_BYTES, GROUP_BYTES, TEXT_ACTIVATION_BYTES, Prediction, predict
from lynx_parallel.parallel.room import MARGIN, VAE_BYTES, fits

SIZES = {"480p": VideoSize(832, 480, 81), "720p": VideoSize(1280, 720, 81)}
CARDS = (24, 32, 40, 48, 80, 96, 141)
"""GB, as a card's name says."""
GPUS = (1, 2, 4, 8)
GB = 10**9


class Case(NamedTuple):
    """One way to render, and what it takes."""

    variant: str
    size: str
    gpus: int
    sharded: bool
    kept: bool
    tiled: bool
    made: Prediction


def cases() -> Iterator[Case]:
    for variant, size, gpus in product(("full", "lite"), SIZES, GPUS):
        shapes = model_shapes(WAN_14B, variant)  # type: ignore[arg-type]
        resampler = resampler_shapes(dim_of(WAN_14B) if variant == "full" else LITE_ID_DIM)
        for sharded, kept, tiled in product((False, True) if gpus > 1 else (False,), (True, False), (False, True)):
            made = predict(
                shapes, Layout(ulysses=gpus), dtype="bfloat16", sharded=sharded, keep_projections=kept,
                size=SIZES[size], heads=WAN_14B["num_attention_heads"], resampler=resampler, vae_bytes=VAE_BYTES,
                text_encoder_bytes=TEXT_ENCODER_BYTES, tiled_decode=tiled,
            )  # fmt: skip
            yield Case(variant, size, gpus, sharded, kept, tiled, made)


def parts(every: list[Case]) -> str:
    """Returns the table of parts and phases of Lynx full, without tiles."""
    head = [
        "size", "GPUs", "sharded", "projections kept", "weights", "gathered", "static K/V", "kept K/V",
        "activations", "NCCL", "decode", "phase: denoise", "phase: decode", "total",
    ]  # fmt: skip
    rows = []
    for case in every:
        if case.tiled or case.variant != "full":
            continue
        made = case.made
        phases = made.phases["denoise"], made.phases["decode"]
        sizes = (
            made.weights, made.gathered, made.static_kv, made.kept_kv, made.activations, made.communication,
            made.decode, *phases, made.total,
        )  # fmt: skip
        words = [case.size, str(case.gpus), _word(case.sharded), _word(case.kept)]
        rows.append([*words, *(f"{size / GB:.1f}" for size in sizes)])
    return table(head, rows)


def cards(every: list[Case]) -> str:
    """Returns the table of cards: for each card, the first way of rendering that fits."""
    head = ["adapters", "size", "GPUs", "`--shard-weights`", *(f"{card} GB" for card in CARDS)]
    ways: dict[tuple[str, str, int, bool], list[Case]] = {}
    for case in every:
        ways.setdefault((case.variant, case.size, case.gpus, case.sharded), []).append(case)
    rows = []
    for (variant, size, gpus, sharded), options in ways.items():
        # Keeping projections is tried first. Leaving them in the file costs time per prompt. Tiles change pixels.
        options.sort(key=lambda case: (case.tiled, not case.kept))
        cells = [next((_mark(case) for case in options if fits(case.made, card * GB)), "–") for card in CARDS]
        rows.append([variant, size, str(gpus), _word(sharded), *cells])
    return table(head, rows)


def _mark(case: Case) -> str:
    return ("yes" if case.kept else "file") + (", tiles" if case.tiled else "")


def _word(value: bool) -> str:
    return "yes" if value else "no"


def report() -> str:
    """Returns results/memory_14b.md."""
    every = list(cases())
    text = f"""# Predicted memory of a rank, 14B

Wan2.1-T2V-14B with Lynx, bfloat16, 81 frames at 832×480 or 1280×720, three guidance branches, Ulysses over all GPUs.
Computed by `python -m benchmarks.memory_table` from shapes, with decoding in fp32. One H200 has measured a
forward and decoding on one rank (`gpu_nvidia_h200.md`). **No GPU has measured the rest.**

- Exact: weights, static K/V. Derived from the code and held against traces of fake tensors: activations, decoding.
  An upper bound: decoding rows on several ranks, K/V kept from earlier shots.
- Estimates: {GROUP_BYTES / GB:.1f} GB of NCCL buffers for each process group, {TEXT_ACTIVATION_BYTES / GB:.1f} GB of
  the text encoder's activations, and {ALLOWANCE_BYTES / GB:.1f} GB for the CUDA context, face models, workspaces and
  the allocator's rounding.
- The total is the fullest phase: encode text ({TEXT_ENCODER_BYTES / GB:.1f} GB of text encoder, before the
  transformer is loaded), denoise, decode. It includes the {ALLOWANCE_BYTES / GB:.1f} GB.

## Which card is needed for what

A card of N GB counts as N·10⁹ bytes, of which {MARGIN:.0%} must stay free.

- yes: fits with all weights on the card.
- file: fits where the projections behind static K/V stay in the weights file. The renderer does that by itself. Each
  new prompt and subject then reads up to 8.4 GB again.
- tiles: fits with `--tiled-decode`, which changes pixels slightly.
- –: does not fit.

{cards(every)}

## Parts

Lynx full, GB (10⁹ bytes) on the fullest rank. Decoding splits rows over all ranks. NCCL, the total and both phases hold
estimates.

{parts(every)}"""
    return text.rstrip() + "\n"


def main() -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "memory_14b.md").write_text(report())
    print(report())


if __name__ == "__main__":
    main()
