"""USP on gloo against serial attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lynx_parallel.parallel.layout import Layout
from tests.distributed.gang import run_gang

HEADS, HEAD_DIM = 4, 24


def _qkv(tokens: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [torch.randn(1, tokens, HEADS, HEAD_DIM, generator=generator) for _ in range(3)]


def _self_attention(rank: int, store: Any, layout: Layout, counts: list[int]) -> list[torch.Tensor]:
    from lynx_parallel.parallel import xdit

    config = dict(
        num_attention_heads=HEADS, attention_head_dim=HEAD_DIM, patch_size=(1, 2, 2), in_channels=16
    )
    tokens = xdit.join(layout, rank=rank, store=store, device=torch.device("cpu"), transformer_config=config).tokens
    outputs = []
    for count in counts:
        q, k, v = (tokens.split(t.flatten(2)).unflatten(2, (HEADS, -1)) for t in _qkv(count))
        assert q.shape[1] == layout.shard(count)
        outputs.append(tokens.gather(tokens.self_attention(q, k, v, count).flatten(2), count))
    xdit.leave()
    return outputs


@pytest.mark.parametrize(
    ("layout", "counts"),
    [
        (Layout(1, 1, 2), [36, 27, 45, 30]),
        (Layout(1, 2, 1), [36, 27, 45, 30]),
        (Layout(1, 2, 2), [36, 27, 45, 30]),
        (Layout(2, 1, 2), [36, 27]),
    ],
)
def test_usp_equals_serial_attention(layout: Layout, counts: list[int]) -> None:
    from lynx_parallel.model.attention import sdpa

    by_rank = run_gang(layout.size, _self_attention, layout, counts)
    for outputs in by_rank:
        for count, output in zip(counts, outputs, strict=True):
            serial = sdpa(*_qkv(count), False)[0].flatten(2)
            if layout.ring == 1:
                assert torch.equal(output, serial), (layout, count)
            else:
                assert (output - serial).norm() / serial.norm() < 1e-6, (layout, count)
