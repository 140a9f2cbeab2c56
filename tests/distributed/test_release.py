"""What a rank holds after it has left a gang that shared the weights."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import torch

from lynx_parallel.inputs.layout import Layout
from lynx_parallel.rank.messages import RankConfig
from lynx_parallel.rank.rank import Rank
from tests.helpers.processes import run_gang
from tests.helpers.weight_files import files


def leave_and_join_again(rank: int, store: Any, demo: Path) -> list[tuple[int, int]]:
    """Shards of each of two gangs: all of them, and those alive after leaving."""
    gc.disable()
    actor = Rank("cpu", 1, RankConfig(files(demo), "float32", denoise=True, shard=True, keep_projections=True))
    counts = []
    for gang in ("first", "second"):
        if rank == 0:
            host, port = actor.open_store()
            store.set(gang, f"{host} {port}")
        host, port = store.get(gang).decode().split()
        actor.join(Layout(ulysses=2), rank, (host, int(port)))
        assert actor.pipeline is not None
        with torch.no_grad():
            actor.pipeline.transformer.text_kv(torch.zeros(1, 512, 64))
        shards = [weakref.ref(p._local_tensor.untyped_storage()) for p in actor.pipeline.transformer.parameters()]
        actor.leave()
        counts.append((len(shards), sum(shard() is not None for shard in shards)))
    return counts


def test_a_rank_that_leaves_frees_its_shards(demo: Path) -> None:
    """Shards must be freed at once, because the next gang's shards are read right after."""
    for counts in run_gang(2, leave_and_join_again, demo):
        for shards, alive in counts:
            assert shards > 100
            assert alive == 0
