"""Living ranks that leave one layout and join another; golden cases and VAE decoding in several layouts."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from lynx_parallel.inputs.layout import Layout
from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.pipeline import LynxPipeline, ShotInputs
from tests.helpers.golden_cases import case_names, load_case, relative_error, requires_golden
from tests.helpers.golden_pipeline import case_sampling, load_pipeline
from tests.helpers.golden_pipeline import prepare as prepare_case
from tests.helpers.processes import run_gang
from tests.helpers.small_renders import load, prepare, sampling

PHASES: list[tuple[str, Layout]] = [
    ("4", Layout(1, 1, 4)),
    ("2 + 2", Layout(1, 1, 2)),
    ("ring 2 + ring 2", Layout(1, 2, 1)),
    ("2 × 2", Layout(1, 2, 2)),
    ("1 + 1 + 1 + 1", Layout()),
]
TOKENS = 45
WORLD = 4
DEVICE = torch.device("cpu")


def denoise_in(
    pipeline: LynxPipeline, layout: Layout, rank: int, store: Any, settings: Sampling, make_inputs: Any
) -> tuple[torch.Tensor, float, float]:
    """Joins, denoises, leaves; final latents, seconds to join, seconds to leave."""
    from lynx_parallel.parallel import xdit
    from lynx_parallel.parallel.apply import localize, parallelize
    from lynx_parallel.parallel.broadcast import broadcast

    if layout.size == 1:
        return pipeline.denoise(make_inputs(), settings), 0.0, 0.0
    began = time.perf_counter()
    config = pipeline.transformer.config
    membership = xdit.join(
        layout, rank=rank, store=store, device=DEVICE, transformer_config=config, timeout=timedelta(minutes=2)
    )
    parallelize(pipeline, membership)
    joined = time.perf_counter() - began
    inputs = broadcast(make_inputs() if rank == 0 else None, ShotInputs, device=DEVICE)
    latents = pipeline.denoise(inputs, settings)
    began = time.perf_counter()
    xdit.leave()
    localize(pipeline)
    return latents, joined, time.perf_counter() - began


def walk_through_phases(rank: int, store: Any, demo: Path) -> list[tuple[torch.Tensor, float, float, bool]]:
    from torch.distributed import PrefixStore

    pipeline, settings = load(demo), sampling(TOKENS)
    weights = {name: p.data_ptr() for name, p in pipeline.transformer.named_parameters()}
    results = []
    for phase, layout in PHASES:
        gang, member = divmod(rank, layout.size)
        place = PrefixStore(f"{phase}/{gang}", store)
        made = denoise_in(pipeline, layout, member, place, settings, lambda: prepare(pipeline, settings))
        unmoved = weights == {name: p.data_ptr() for name, p in pipeline.transformer.named_parameters()}
        results.append((*made, unmoved))
    return results


def test_regrouping_living_ranks(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_rank = run_gang(WORLD, walk_through_phases, demo)
    assert {len(results) for results in by_rank} == {len(PHASES)}
    alone = load(demo)
    serial = alone.denoise(prepare(alone, sampling(TOKENS)), sampling(TOKENS))
    for number, (phase, layout) in enumerate(PHASES):
        for results in by_rank:
            latents, _, _, unmoved = results[number]
            assert relative_error(latents, serial) <= (1e-6 if layout.ring == 1 else 1e-5), phase
            assert unmoved, phase
        joined, left = (max(results[number][i] for results in by_rank) for i in (1, 2))
        with capsys.disabled():
            print(f"\n{phase}: joined in {joined:.2f} s, left in {left:.2f} s", end="")


def decode_split(rank: int, store: Any, demo: Path) -> dict[tuple[int, int], torch.Tensor]:
    """Decoded videos by (ranks, latent rows); rows that do not divide too."""
    from torch.distributed import PrefixStore

    from lynx_parallel.parallel import xdit
    from lynx_parallel.parallel.vae import split_decoder
    from lynx_parallel.stages.latents import decode

    pipeline = load(demo)
    decoded = {}
    for ranks in (2, 3, 4):
        if rank >= ranks:
            continue
        xdit.join(
            Layout(ring=ranks), rank=rank, store=PrefixStore(str(ranks), store), device=DEVICE,
            transformer_config=pipeline.transformer.config,
        )  # fmt: skip
        split = split_decoder(pipeline.vae)
        shared = {p.data_ptr() for p in pipeline.vae.parameters()}
        assert all(p.data_ptr() in shared for p in split.parameters())
        for rows in (4, 6, 7):
            decoded[ranks, rows] = decode(split, latents_of(rows))
        xdit.leave()
    decoded[1, 6] = decode(pipeline.vae, latents_of(6))
    return decoded


def latents_of(rows: int) -> torch.Tensor:
    return torch.randn(1, 16, 3, rows, 8, generator=torch.Generator().manual_seed(rows))


def test_vae_decode_over_a_gang(demo: Path) -> None:
    """Other convolution shapes round differently: 2e-6 was measured, 1e-5 is asked."""
    from lynx_parallel.stages.latents import decode

    by_rank = run_gang(4, decode_split, demo)
    vae = load(demo).vae
    for rank, decoded in enumerate(by_rank):
        assert {ranks for ranks, _ in decoded} == {1, *range(max(2, rank + 1), 5)}
        for (_, rows), video in decoded.items():
            assert relative_error(video, decode(vae, latents_of(rows))) <= 1e-5


GOLDEN_LAYOUTS = {
    "full_a": [Layout(1, 1, 2), Layout(1, 2, 1), Layout(3, 1, 1)],
    "mixed_a": [Layout(1, 1, 2), Layout(1, 2, 1), Layout(3, 1, 1)],
    "full_b": [Layout(1, 1, 2), Layout(1, 2, 1), Layout(2, 1, 1)],
    "lite_a": [Layout(1, 1, 2), Layout(1, 2, 1), Layout(2, 1, 1)],
}


def denoise_golden(rank: int, store: Any) -> dict[tuple[str, Layout], torch.Tensor]:
    from torch.distributed import PrefixStore

    made = {}
    for name in case_names():
        case = load_case(name)
        pipeline, settings = load_pipeline(case), case_sampling(case)
        for layout in GOLDEN_LAYOUTS[name]:
            if rank < layout.size:
                place = PrefixStore(f"{name}/{layout}", store)
                inputs = lambda case=case, pipeline=pipeline: prepare_case(case, pipeline)  # noqa: E731
                made[name, layout] = denoise_in(pipeline, layout, rank, place, settings, inputs)[0]
    return made


@requires_golden
def test_recordings_in_every_layout() -> None:
    by_rank = run_gang(3, denoise_golden)
    for name in case_names():
        expected = load_case(name).expected["final_latents"]
        for layout in GOLDEN_LAYOUTS[name]:
            for made in by_rank[: layout.size]:
                assert relative_error(made[name, layout], expected) <= 1e-5, (name, layout)
