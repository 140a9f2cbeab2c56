"""The whole model on a gang against one process: latents, the tokens each rank sees, the calls of USP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

from lynx_parallel.inputs.guidance import guidance_coefficients
from lynx_parallel.inputs.layout import Layout
from lynx_parallel.model.block import BlockConditioning
from lynx_parallel.model.transformer import LynxTransformer
from lynx_parallel.pipeline import ShotInputs
from lynx_parallel.stages.denoise import LocalGuidance, Phase, denoise
from lynx_parallel.stages.latents import initial_noise
from lynx_parallel.stages.schedulers import make_scheduler
from tests.helpers.golden_cases import relative_error
from tests.helpers.processes import run_gang
from tests.helpers.small_renders import load, prepare, sampling


def bare_model(heads: int) -> LynxTransformer:
    """A transformer of this many heads with the same random weights in every process, without adapters."""
    torch.manual_seed(heads)
    wan = WanTransformer3DModel(
        num_attention_heads=heads, attention_head_dim=12, num_layers=2, ffn_dim=64, text_dim=32, freq_dim=32
    )
    return LynxTransformer(wan)


def denoise_bare(model: LynxTransformer, tokens: int, guidance: LocalGuidance) -> torch.Tensor:
    """Final latents of three steps and three branches that see three texts."""
    generator = torch.Generator().manual_seed(tokens)
    texts = {name: torch.randn(1, 20, 32, generator=generator) for name in ("c", "i", "u")}
    settings = sampling(tokens)
    noise = initial_noise(settings.width, settings.height, settings.num_frames, tokens)
    config = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    scheduler = make_scheduler(config, settings)
    with torch.no_grad():
        branches: Any = {name: [BlockConditioning(kv) for kv in model.text_kv(text)] for name, text in texts.items()}
    phase = Phase(guidance_coefficients(5.0, 2.0), branches, model)
    return denoise(scheduler, noise, lambda _: phase, None, guidance)


LAYOUTS = [
    Layout(1, 1, 2), Layout(1, 2, 1), Layout(1, 2, 2), Layout(1, 1, 4), Layout(1, 4, 1),
    Layout(2, 1, 1), Layout(3, 1, 1), Layout(3, 1, 2), Layout(2, 2, 1),
]  # fmt: skip
COUNTS = [36, 27, 45, 30]
WORLD = 6
HEADS = [8, 40]
"""Of the bare models; the demo's has 4."""


def render_in_every_layout(rank: int, store: Any, demo: Path) -> dict[Layout, dict[str, Any]]:
    """The same living processes in one layout after the other; those a layout has no room for stand by.

    Returns what a rank made and what hooks from outside counted, by layout.
    """
    from torch.distributed import PrefixStore

    from lynx_parallel.parallel import xdit
    from lynx_parallel.parallel.apply import localize, parallelize
    from lynx_parallel.parallel.broadcast import broadcast

    pipeline = load(demo)
    weights = {name: p.data_ptr() for name, p in pipeline.transformer.named_parameters()}
    device, config = torch.device("cpu"), pipeline.transformer.config
    bare = {heads: bare_model(heads) for heads in HEADS}
    prepared = {count: prepare(pipeline, sampling(count)) for count in COUNTS} if rank == 0 else {}
    results: dict[Layout, dict[str, Any]] = {}
    for number, layout in enumerate(LAYOUTS):
        if rank >= layout.size:
            continue
        membership = xdit.join(
            layout, rank=rank, store=PrefixStore(str(number), store), device=device, transformer_config=config
        )
        parallelize(pipeline, membership)
        usp_calls: list[tuple[int, ...]] = []
        plain = membership.tokens._usp

        def counted(q: torch.Tensor, *args: Any, usp_calls=usp_calls, plain=plain, **kwargs: Any) -> torch.Tensor:  # type: ignore[no-untyped-def]
            usp_calls.append(tuple(q.shape))
            return plain(q, *args, **kwargs)

        membership.tokens._usp = counted
        result: dict[str, Any] = {"latents": {}, "block_inputs": {}, "usp_calls": {}}
        for count in COUNTS:
            inputs = broadcast(prepared.get(count), ShotInputs, device=device)
            pipeline.phase(inputs, sampling(count))  # the reference pass runs here, unsplit, before the hooks
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
        result["bare"] = {}
        for heads, model in bare.items():
            model.tokens = membership.tokens
            for count in COUNTS:
                result["bare"][heads, count] = denoise_bare(model, count, membership.guidance)
        xdit.leave()
        localize(pipeline)
        result["weights unmoved"] = weights == {n: p.data_ptr() for n, p in pipeline.transformer.named_parameters()}
        results[layout] = result
    return results


@pytest.fixture(scope="module")
def by_rank(demo: Path) -> list[dict[Layout, dict[str, Any]]]:
    return run_gang(WORLD, render_in_every_layout, demo)


@pytest.fixture(scope="module")
def serial(demo: Path) -> dict[int, torch.Tensor]:
    alone = load(demo)
    return {count: alone.denoise(prepare(alone, sampling(count)), sampling(count)) for count in COUNTS}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_gang_gives_the_latents_of_one_process(
    layout: Layout, by_rank: list[dict[Layout, dict[str, Any]]], serial: dict[int, torch.Tensor]
) -> None:
    """≤ 1e-6 relative for Ulysses and guidance; ≤ 1e-5 with a ring, whose softmax is merged step by step."""
    assert [layout in results for results in by_rank] == [rank < layout.size for rank in range(WORLD)]
    for results in by_rank[: layout.size]:
        for count in COUNTS:
            made = results[layout]["latents"][count]
            assert relative_error(made, serial[count]) <= (1e-6 if layout.ring == 1 else 1e-5)
            assert torch.equal(made, by_rank[0][layout]["latents"][count])


@pytest.mark.parametrize("heads", HEADS)
def test_other_head_counts(heads: int, by_rank: list[dict[Layout, dict[str, Any]]]) -> None:
    model = bare_model(heads)
    for count in COUNTS:
        serial = denoise_bare(model, count, LocalGuidance())
        for layout in LAYOUTS:
            for results in by_rank[: layout.size]:
                made = results[layout]["bare"][heads, count]
                assert relative_error(made, serial) <= (1e-6 if layout.ring == 1 else 1e-5), layout


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_each_rank_sees_its_share(layout: Layout, by_rank: list[dict[Layout, dict[str, Any]]]) -> None:
    """Blocks see ⌈N / sequence ranks⌉ tokens, and USP runs blocks × this rank's branches × steps times."""
    blocks, branches, steps, heads = 3, 3, 3, 4
    for rank, results in enumerate(by_rank[: layout.size]):
        mine = len(range(rank // layout.sequence, branches, layout.guidance))
        calls = blocks * mine * steps
        for count in COUNTS:
            assert results[layout]["block_inputs"][count] == [layout.shard(count)] * calls
            assert results[layout]["usp_calls"][count] == [(1, heads, layout.shard(count), 24)] * calls


def test_regrouping_leaves_the_weights_where_they_are(by_rank: list[dict[Layout, dict[str, Any]]]) -> None:
    assert all(result["weights unmoved"] for results in by_rank for result in results.values())
