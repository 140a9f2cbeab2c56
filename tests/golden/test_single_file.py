"""The single-file (ComfyUI) layout, fp16, against the recordings."""

from __future__ import annotations

import pytest
import torch

from lynx_parallel.pipeline import LynxPipeline
from tests.helpers.golden_cases import load_case, relative_error, requires_golden
from tests.helpers.golden_pipeline import case_sampling, prepare

TOLERANCE = 5e-3
"""The adapters are rounded to fp16; measured: see the assertion's message when it fails."""


@requires_golden
@pytest.mark.parametrize("name", ["full_a", "lite_a"])
def test_final_latents(name: str) -> None:
    case = load_case(name)
    folder = case.folder / "adapters_comfyui"
    kinds = {"resampler": "resampler", "ip_layers": "id", "ref_layers": "ref"}
    adapters = {
        kind: path for path in sorted(folder.glob("*.safetensors")) for part, kind in kinds.items() if part in path.name
    }
    pipeline = LynxPipeline.from_pretrained(case.base, adapters, dtype=torch.float32)
    latents = pipeline.denoise(prepare(case, pipeline), case_sampling(case))
    error = relative_error(latents, case.expected["final_latents"])
    assert 1e-6 < error <= TOLERANCE, error  # fp16 must show: else these were not the files that were read
