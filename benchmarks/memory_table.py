"""Predicted bytes per rank of Wan2.1-T2V-14B with Lynx full at 832×480×81, by number of GPUs.

    python -m benchmarks.memory_table

No measurement: ``lynx_parallel.parallel.memory`` over the real files' shapes. Writes results/memory_14b.md.
"""

from __future__ import annotations

from itertools import product

from benchmarks.machine import RESULTS, table
from benchmarks.shapes import WAN_14B, dim_of, model_shapes, resampler_shapes
from lynx_parallel.parallel.layout import Layout
from lynx_parallel.parallel.memory import predict

TOKENS = 21 * 30 * 52  # 81 frames of 832×480: latents of 21×60×104, patches of 1×2×2
VAE_BYTES = 500_000_000


def main() -> None:
    shapes, resampler = model_shapes(WAN_14B), resampler_shapes(dim_of(WAN_14B))
    rows = []
    for gpus in (1, 2, 4, 8):
        layout = Layout(ulysses=gpus)
        for sharded, keep in product((False, True) if gpus > 1 else (False,), (True, False)):
            made = predict(
                shapes, layout, dtype="bfloat16", sharded=sharded, keep_projections=keep, tokens=TOKENS,
                heads=WAN_14B["num_attention_heads"], resampler=resampler, vae_bytes=VAE_BYTES,
            )  # fmt: skip
            parts = (
                made.transformer, made.adapters, made.resampler + made.vae, made.gathered, made.static_kv,
                made.activations, made.total,
            )  # fmt: skip
            rows.append([str(gpus), str(layout), _word(sharded), _word(keep), *(f"{part / 1e9:.2f}" for part in parts)])
    head = [
        "GPUs", "layout", "sharded", "projections kept", "transformer", "adapters", "resampler, VAE", "gathered",
        "static K/V", "activations", "total",
    ]  # fmt: skip
    text = (
        "# Predicted memory of a rank, 14B\n\n"
        "Wan2.1-T2V-14B with Lynx full, bfloat16, 832×480×81 (32,760 tokens), three guidance branches;\n"
        "GB (10⁹ bytes) on the fullest rank while it denoises. Computed by `python -m benchmarks.memory_table`,\n"
        "not measured: weights and static K/V are exact, activations an estimate (`lynx_parallel.parallel.memory`),\n"
        "the VAE is put at 0.5 GB. Kernels' workspace, the allocator's rounding, CUDA's context, communication\n"
        "buffers, decoding and the static K/V kept from earlier shots come on top.\n"
        "Projections not kept: those behind static K/V stay in the weights file (`keep_projections=False`).\n\n"
        + table(head, rows)
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "memory_14b.md").write_text(text)
    print(text)


def _word(value: bool) -> str:
    return "yes" if value else "no"


if __name__ == "__main__":
    main()
