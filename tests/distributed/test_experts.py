"""Two experts over several ranks: sharded or not, both on the device or one at a time, and a first frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lynx_parallel.inputs.layout import Layout
from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.pipeline import LynxPipeline, ShotInputs
from tests.helpers.golden_cases import relative_error
from tests.helpers.processes import run_gang
from tests.helpers.tiny_bases import load_tiny, prepare_tiny, write_base

KINDS = ("T2V-A14B", "I2V")
CASES = [(Layout(1, 1, 2), False), (Layout(1, 1, 2), True), (Layout(1, 2, 1), True), (Layout(2, 1, 1), False)]
SAMPLING = Sampling(
    width=80, height=48, num_frames=9, num_inference_steps=4, flow_shift=5.0, sigma_schedule="diffusers",
    guidance_scale_2=None,
)  # fmt: skip


def render(rank: int, store: Any, folder: Path, demo: Path) -> list[torch.Tensor]:
    from torch.distributed import PrefixStore

    from lynx_parallel.parallel import xdit
    from lynx_parallel.parallel.apply import parallelize
    from lynx_parallel.parallel.broadcast import broadcast
    from lynx_parallel.parallel.shard import shard

    device = torch.device("cpu")
    made = []
    for kind in KINDS:
        config = load_tiny(folder / kind, demo).transformer.config
        for number, (layout, sharded) in enumerate(CASES):
            member = xdit.join(
                layout, rank=rank, store=PrefixStore(f"{kind}{number}", store), device=device, transformer_config=config
            )

            def sharder(model: Any, group: Any = member.tokens.group) -> None:
                shard(model, group)

            pipeline = load_tiny(folder / kind, demo, shard=sharder if sharded else None, one_expert=True)
            parallelize(pipeline, member)
            inputs = prepare_tiny(pipeline, folder / kind, SAMPLING) if rank == 0 else None
            inputs = broadcast(inputs, ShotInputs, device=device)
            made.append(pipeline.denoise(inputs, SAMPLING))
            assert pipeline.experts.moves == (2 if kind == "T2V-A14B" else 0)
            xdit.leave()
    return made


@pytest.fixture(scope="module")
def folder(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for kind in KINDS:
        write_base(folder / kind, demo, kind)
    return folder


@pytest.fixture(scope="module")
def by_rank(folder: Path, demo: Path) -> list[list[torch.Tensor]]:
    return run_gang(2, render, folder, demo)


@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_gives_the_same(kind: str, folder: Path, demo: Path, by_rank: list[list[torch.Tensor]]) -> None:
    alone: LynxPipeline = load_tiny(folder / kind, demo)
    serial = alone.denoise(prepare_tiny(alone, folder / kind, SAMPLING), SAMPLING)
    for made in by_rank:
        of_kind = made[KINDS.index(kind) * len(CASES) :][: len(CASES)]
        for (layout, _), latents in zip(CASES, of_kind, strict=True):
            assert relative_error(latents, serial) <= (1e-6 if layout.ring == 1 else 1e-5), str(layout)
