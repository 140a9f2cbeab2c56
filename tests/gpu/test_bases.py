"""Two experts and first frames on the device: one expert at a time gives equal bits and takes less memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lynx_parallel.inputs.sampling import Sampling
from tests.helpers.tiny_bases import Kind, load_tiny, prepare_tiny, write_base

SAMPLING = Sampling(
    width=80, height=48, num_frames=9, num_inference_steps=4, flow_shift=5.0, sigma_schedule="diffusers"
)  # fmt: skip


@pytest.mark.parametrize("kind", ["T2V-A14B", "I2V", "I2V-A14B"])
def test_the_device_holds_one_expert_at_a_time(tmp_path: Path, demo: Path, device: torch.device, kind: Kind) -> None:
    base = write_base(tmp_path / kind, demo, kind)
    made = []
    for one in (False, True):
        pipeline = load_tiny(base, demo, device=device, one_expert=one)
        latents = pipeline.denoise(prepare_tiny(pipeline, base, SAMPLING), SAMPLING)
        assert latents.device.type == device.type
        assert latents.isfinite().all()
        made.append(latents)
        if one and "A14B" in kind:
            assert pipeline.experts.moves == 2
            on = [transformer.device.type for transformer in pipeline.experts]
            assert on == ["cpu", device.type]
    assert torch.equal(*made)
