"""LoRAs on sharded weights: each rank merges its rows, and the reference pass can do without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lynx_parallel.inputs.layout import Layout
from lynx_parallel.inputs.weight_files import LoraFile
from lynx_parallel.pipeline import LynxPipeline, ShotInputs
from tests.helpers.golden_cases import relative_error
from tests.helpers.lora_files import make_known, whole_file, write
from tests.helpers.processes import run_gang
from tests.helpers.small_renders import load, prepare, sampling
from tests.helpers.weight_files import files

TOKENS = 36
KINDS = [(keep, on_reference) for keep in (True, False) for on_reference in (True, False)]
"""Whether projections are kept, and whether the LoRA acts in the reference pass."""


def pipeline(demo: Path, lora: Path, kind: tuple[bool, bool], **options: Any) -> LynxPipeline:
    keep, on_reference = kind
    weights = replace(files(demo), loras=(LoraFile(lora, 0.8),), loras_on_reference=on_reference)
    return LynxPipeline.from_files(weights, dtype=torch.float32, keep_projections=keep, **options)


def render(rank: int, store: Any, demo: Path, lora: Path) -> dict[tuple[bool, bool], list[torch.Tensor]]:
    """Latents of two prompts, by kind."""
    from torch.distributed import PrefixStore

    from lynx_parallel.parallel import xdit
    from lynx_parallel.parallel.apply import parallelize
    from lynx_parallel.parallel.broadcast import broadcast
    from lynx_parallel.parallel.shard import shard

    device, settings, made = torch.device("cpu"), sampling(TOKENS), {}
    config = load(demo).transformer.config
    for kind in KINDS:
        membership = xdit.join(
            Layout(ulysses=2), rank=rank, store=PrefixStore(str(kind), store), device=device,
            transformer_config=config,
        )  # fmt: skip
        group = membership.tokens.group
        sharded = pipeline(
            demo, lora, kind, shard=lambda model, group=group, keep=kind[0]: shard(model, group, keep_projections=keep)
        )
        parallelize(sharded, membership)
        latents = []
        for number in range(2):
            inputs = broadcast(prompt(sharded, number) if rank == 0 else None, ShotInputs, device=device)
            assert inputs is not None
            latents.append(sharded.denoise(inputs, settings))
        made[kind] = latents
        xdit.leave()
    return made


def prompt(made: LynxPipeline, number: int) -> ShotInputs:
    inputs = prepare(made, sampling(TOKENS))
    return replace(inputs, prompt_embeds=made.inputs.prompt_embeds(f"A person, number {number}"))


def test_latents_are_those_of_one_process(demo: Path, tmp_path: Path) -> None:
    lora = write(tmp_path / "lora.safetensors", whole_file(make_known(load(demo).transformer.state_dict(), whole=True)))
    ranks = run_gang(2, render, demo, lora)
    different = []
    for kind in KINDS:
        alone = pipeline(demo, lora, kind)
        for number in range(2):
            expected = alone.denoise(prompt(alone, number), sampling(TOKENS))
            different.append(expected)
            for made in ranks:
                assert relative_error(made[kind][number], expected) <= 2e-6, kind
    assert relative_error(different[0], different[2]) > 1e-4  # the reference pass matters
