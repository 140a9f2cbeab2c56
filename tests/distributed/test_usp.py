"""USP on gloo against serial attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lynx_parallel.inputs.layout import Layout
from lynx_parallel.model.attention import sdpa
from tests.helpers.golden_cases import relative_error
from tests.helpers.processes import run_gang

HEADS, HEAD_DIM = 4, 24


def _qkv(tokens: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [torch.randn(1, tokens, HEADS, HEAD_DIM, generator=generator) for _ in range(3)]


LAYOUTS = [Layout(1, 1, 2), Layout(1, 2, 1), Layout(1, 2, 2), Layout(1, 1, 4), Layout(1, 4, 1), Layout(2, 1, 2)]
COUNTS = [36, 27, 45, 30]


def attend_in_every_layout(rank: int, store: Any) -> dict[Layout, list[torch.Tensor]]:
    from torch.distributed import PrefixStore

    from lynx_parallel.parallel import xdit

    outputs: dict[Layout, list[torch.Tensor]] = {}
    for layout in LAYOUTS:
        if rank >= layout.size:
            continue
        tokens = xdit.join(
            layout, rank=rank, store=PrefixStore(str(layout), store), device=torch.device("cpu"),
            transformer_config={
                "num_attention_heads": HEADS, "attention_head_dim": HEAD_DIM, "patch_size": (1, 2, 2), "in_channels": 16
            },
        ).tokens  # fmt: skip
        outputs[layout] = []
        for count in COUNTS:
            q, k, v = (tokens.split(t.flatten(2)).unflatten(2, (HEADS, -1)) for t in _qkv(count))
            assert q.shape[1] == layout.shard(count)
            outputs[layout].append(tokens.gather(tokens.self_attention(q, k, v, count).flatten(2), count))
        xdit.leave()
    return outputs


@pytest.fixture(scope="module")
def by_rank() -> list[dict[Layout, list[torch.Tensor]]]:
    return run_gang(4, attend_in_every_layout)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_usp_equals_serial_attention(layout: Layout, by_rank: list[dict[Layout, list[torch.Tensor]]]) -> None:
    """Bit for bit in Ulysses, whether or not the tokens divide; a ring merges its steps' softmax."""
    for outputs in by_rank[: layout.size]:
        for count, output in zip(COUNTS, outputs[layout], strict=True):
            serial = sdpa(*_qkv(count), False)[0].flatten(2)  # type: ignore[call-arg]
            if layout.ring == 1:
                assert torch.equal(output, serial), count
            else:
                assert relative_error(output, serial) < 1e-6, count
