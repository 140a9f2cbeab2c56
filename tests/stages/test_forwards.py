"""Forwards of the transformer, counted from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.pipeline import LynxPipeline
from lynx_parallel.plan import work
from tests.helpers.small_renders import load, prepare


@pytest.fixture(scope="module")
def pipeline(demo: Path) -> LynxPipeline:
    return load(demo)


@pytest.mark.parametrize(
    ("settings", "forwards"),
    [
        ({"num_inference_steps": 5}, 3 * 5),
        ({"num_inference_steps": 5, "guidance_scale_i": None}, 2 * 5),
        ({"num_inference_steps": 4, "guidance_scale": 1.0, "scheduler": "euler"}, 4),
        ({"num_inference_steps": 6, "guidance_scale": 1.0, "scheduler": "lcm",
          "timesteps": (1000, 970, 924, 845, 675, 60)}, 6),
        # Outside the identity window, branch i is equal to u.
        ({"num_inference_steps": 4, "identity_window": (0.0, 0.5)}, 3 * 2 + 2 * 2),
        ({"num_inference_steps": 4, "guidance_scale": 1.0, "identity_window": (0.0, 0.5)}, 4),
    ],
)  # fmt: skip
def test_forwards_of_a_shot(pipeline: LynxPipeline, settings: dict[str, Any], forwards: int) -> None:
    sampling = Sampling(width=64, height=48, num_frames=5, **settings)
    calls = []
    hook = pipeline.transformer.register_forward_hook(lambda *_: calls.append(1))
    try:
        pipeline.denoise(prepare(pipeline, sampling), sampling)
    finally:
        hook.remove()
    assert len(calls) == forwards
    assert work.forwards(sampling, has_reference=True) == forwards, "what plan counts"
