"""FLOPs of the Wan transformer with Lynx full, by closed formula and counted operator by operator.

Two for a multiply-add; what a matrix product, a convolution or an attention does, nothing element-wise. In the names of
parts: N tokens, d channels, f of the feed-forward, c latent channels, p numbers in a patch, t channels of the text.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks.shapes import dim_of

TEXT, ID, REGISTERS, REF = 512, 16, 16, 256
"""Tokens that a branch sees beside the video's."""


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


def reference_flops(config: dict[str, Any], *, kv: bool) -> int:
    """The pass over a face crop, to its features or to its keys and values."""
    passing = forward_flops(config, REF, adapters=False, output=False)
    return sum(passing.values()) + kv * static_flops(config)["reference K/V 4·256·d²"]
