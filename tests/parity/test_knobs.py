"""Scales, identity window, reference blocks, reference size: what they change, and that they cost nothing when off."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.pipeline import LynxPipeline
from lynx_parallel.stages.conditioning import reference_features
from tests.helpers.small_renders import load, prepare

SMALL: dict[str, Any] = {"width": 64, "height": 48, "num_frames": 5, "num_inference_steps": 4}


@pytest.fixture(scope="module")
def pipeline(demo: Path) -> LynxPipeline:
    return load(demo)


def run(pipeline: LynxPipeline, **changes: Any) -> tuple[torch.Tensor, list[int], Counter[str]]:
    """Final latents, branches run in each step, and what was projected."""
    pipeline.conditioning.clear()
    pipeline.conditioning.counts.clear()
    sampling = Sampling(**(SMALL | changes))
    branches: list[int] = []
    latents = pipeline.denoise(
        prepare(pipeline, sampling), sampling, lambda step: branches.append(len(step.velocities))
    )
    return latents, branches, Counter(pipeline.conditioning.counts)


def test_outside_the_window_two_branches_and_no_identity(pipeline: LynxPipeline) -> None:
    plain, three, _ = run(pipeline)
    assert three == [3, 3, 3, 3]
    windowed, branches, _ = run(pipeline, identity_window=(0.25, 0.75))
    assert branches == [2, 3, 3, 2]
    assert not torch.equal(windowed, plain)
    never, branches, counts = run(pipeline, identity_window=(0.5, 0.5))
    assert branches == [2, 2, 2, 2]
    assert counts["identity"] == counts["reference"] == 0
    nobody, branches, counts = run(pipeline, ip_scale=0.0, ref_scale=0.0)
    assert branches == [2, 2, 2, 2]
    assert counts["identity"] == counts["reference"] == 0
    assert torch.equal(never, nobody)


def test_a_window_of_all_steps_is_none(pipeline: LynxPipeline) -> None:
    assert torch.equal(run(pipeline)[0], run(pipeline, identity_window=(0.0, 1.0))[0])


def test_zero_scales_mean_zero(pipeline: LynxPipeline) -> None:
    _, _, counts = run(pipeline, ref_scale=0.0)
    assert (counts["identity"], counts["reference"]) == (2, 0)
    _, _, counts = run(pipeline, ip_scale=0.0)
    assert (counts["identity"], counts["reference"]) == (0, 2)


def test_reference_blocks(pipeline: LynxPipeline) -> None:
    """Blocks that are not named attend to no reference."""
    plain, _, _ = run(pipeline)
    assert torch.equal(run(pipeline, ref_blocks="0-2")[0], plain)
    some = run(pipeline, ref_blocks="0,2")[0]
    assert not torch.equal(some, plain)
    sampling = Sampling(**SMALL, ref_blocks="0,2")
    phase = pipeline.phase(prepare(pipeline, sampling), sampling)
    for branch in phase.branches.values():
        assert [block.reference is not None for block in branch] == [True, False, True]


def test_reference_size(pipeline: LynxPipeline) -> None:
    sampling = Sampling(**SMALL, reference_size=384)
    inputs = prepare(pipeline, sampling)
    assert inputs.reference_latents is not None
    assert inputs.reference_latents.shape == (1, 16, 1, 48, 48)
    assert {
        feature.shape[1] for feature in reference_features(pipeline.transformer, inputs, pipeline.conditioning)
    } == {24 * 24}
