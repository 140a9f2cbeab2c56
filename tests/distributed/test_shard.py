"""Weight sharding: parity, bytes kept, and no rank that waits for another's branch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lynx_parallel.inputs.layout import Layout
from lynx_parallel.pipeline import LynxPipeline, ShotInputs
from tests.helpers.golden_cases import relative_error
from tests.helpers.processes import run_gang
from tests.helpers.small_renders import load, prepare, sampling
from tests.helpers.weight_files import files

LAYOUTS = [Layout(1, 1, 2), Layout(1, 2, 1), Layout(2, 1, 1), Layout(2, 1, 2), Layout(1, 1, 4)]
WORLD = 4
TOKENS = 45


def kept_bytes(transformer: torch.nn.Module) -> int:
    """Bytes of the parameters that live on this rank."""
    local = [getattr(p, "_local_tensor", p) for p in transformer.parameters()]
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


def render_sharded(rank: int, store: Any, demo: Path) -> dict[Layout, dict[str, Any]]:
    from torch.distributed import PrefixStore

    from lynx_parallel.parallel import xdit
    from lynx_parallel.parallel.apply import parallelize
    from lynx_parallel.parallel.broadcast import broadcast
    from lynx_parallel.parallel.shard import shard

    device, settings = torch.device("cpu"), sampling(TOKENS)
    whole = load(demo)
    results: dict[Layout, dict[str, Any]] = {}
    for number, layout in enumerate(LAYOUTS):
        if rank >= layout.size:
            continue
        membership = xdit.join(
            layout,
            rank=rank,
            store=PrefixStore(str(number), store),
            device=device,
            transformer_config=whole.transformer.config,
        )
        pipeline = LynxPipeline.from_files(
            files(demo), dtype=torch.float32, shard=lambda model, group=membership.tokens.group: shard(model, group)
        )
        parallelize(pipeline, membership)
        before = kept_bytes(pipeline.transformer)
        inputs = broadcast(prepare(pipeline, settings) if rank == 0 else None, ShotInputs, device=device)
        latents = pipeline.denoise(inputs, settings)
        results[layout] = {
            "latents": latents,
            "bytes": (before, kept_bytes(pipeline.transformer)),
            "whole bytes": kept_bytes(whole.transformer),
        }
        xdit.leave()
    return results


@pytest.fixture(scope="module")
def by_rank(demo: Path) -> list[dict[Layout, dict[str, Any]]]:
    return run_gang(WORLD, render_sharded, demo)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_parity(layout: Layout, by_rank: list[dict[Layout, dict[str, Any]]], demo: Path) -> None:
    alone = load(demo)
    serial = alone.denoise(prepare(alone, sampling(TOKENS)), sampling(TOKENS))
    for results in by_rank[: layout.size]:
        assert relative_error(results[layout]["latents"], serial) <= (1e-6 if layout.ring == 1 else 1e-5)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_each_rank_keeps_its_share(layout: Layout, by_rank: list[dict[Layout, dict[str, Any]]]) -> None:
    """1/P of the parameters before the first step and after the last; rows that do not divide add a little."""
    for results in by_rank[: layout.size]:
        made = results[layout]
        for kept in made["bytes"]:
            assert kept <= made["whole bytes"] / layout.sequence * 1.05
    for first in range(0, layout.size, layout.sequence):
        group = by_rank[first : first + layout.sequence]
        assert sum(results[layout]["bytes"][0] for results in group) == group[0][layout]["whole bytes"]
