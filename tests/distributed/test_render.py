"""The whole model on a gang against one process: latents, the tokens each rank sees, the calls of USP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lynx_parallel.demo.faces import LANDMARKS
from lynx_parallel.parallel.layout import Layout
from lynx_parallel.pipeline import LynxPipeline, ShotInputs
from lynx_parallel.spec.pipeline import Sampling
from tests.conftest import REPOSITORY
from tests.distributed.gang import run_gang
from tests.golden_cases import relative_error

FACES = REPOSITORY / "manifests" / "faces"
SIZES = {27: (48, 48, 9), 30: (80, 48, 5), 36: (64, 48, 9), 45: (80, 48, 9)}
"""Tokens → width, height, frames."""


def sampling(tokens: int) -> Sampling:
    width, height, frames = SIZES[tokens]
    return Sampling(width=width, height=height, num_frames=frames, num_inference_steps=3)


def load(demo: Path) -> LynxPipeline:
    files = {"resampler": "resampler", "id": "ip_layers", "ref": "ref_layers"}
    return LynxPipeline.from_pretrained(
        demo / "wan", {name: demo / "full" / f"{stem}.safetensors" for name, stem in files.items()}, dtype=torch.float32
    )


def prepare(pipeline: LynxPipeline, settings: Sampling) -> ShotInputs:
    return pipeline.prepare(
        "A person at a desk",
        settings,
        image=FACES / "astronaut.jpg",
        landmarks=LANDMARKS["astronaut"],
        embedding=FACES / "astronaut.safetensors",
    )


def render(rank: int, store: Any, demo: Path, layout: Layout, counts: list[int]) -> dict[str, Any]:
    """On every rank: final latents by token count, and what hooks from outside counted."""
    from lynx_parallel.parallel import xdit
    from lynx_parallel.parallel.apply import parallelize
    from lynx_parallel.parallel.broadcast import broadcast

    pipeline = load(demo)
    device = torch.device("cpu")
    config = pipeline.transformer.config
    parallelize(
        pipeline.transformer, xdit.join(layout, rank=rank, store=store, device=device, transformer_config=config)
    )
    usp_calls: list[tuple[int, ...]] = []
    xfuser = xdit._import_xfuser()
    plain = xfuser.USP

    def counted(q: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        usp_calls.append(tuple(q.shape))
        return plain(q, *args, **kwargs)

    xfuser.USP = counted
    result: dict[str, Any] = {"latents": {}, "block_inputs": {}, "usp_calls": {}}
    for count in counts:
        inputs = broadcast(prepare(pipeline, sampling(count)) if rank == 0 else None, ShotInputs, device=device)
        pipeline.branches(inputs, sampling(count))  # the reference pass runs here, unsplit, before the hooks
        seen: list[int] = []
        hooks = [
            block.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].shape[1]))
            for block in pipeline.transformer.blocks
        ]
        usp_calls.clear()
        result["latents"][count] = pipeline.denoise(inputs, sampling(count))
        result["block_inputs"][count], result["usp_calls"][count] = seen, list(usp_calls)
        for hook in hooks:
            hook.remove()
    xdit.leave()
    return result


@pytest.mark.parametrize("layout", [Layout(1, 1, 2)])
def test_a_gang_gives_the_latents_of_one_process(demo: Path, layout: Layout) -> None:
    counts = [36, 27, 45, 30]
    alone = load(demo)
    by_rank = run_gang(layout.size, render, demo, layout, counts)
    blocks, branches, steps = len(alone.transformer.blocks), 3, 3
    for count in counts:
        settings = sampling(count)
        serial = alone.denoise(prepare(alone, settings), settings)
        for made in by_rank:
            assert relative_error(made["latents"][count], serial) <= 1e-6
            assert torch.equal(made["latents"][count], by_rank[0]["latents"][count])
            assert made["block_inputs"][count] == [layout.shard(count)] * (blocks * branches * steps)
            heads = alone.transformer.config.num_attention_heads
            assert made["usp_calls"][count] == [(1, heads, layout.shard(count), 24)] * (blocks * branches * steps)
