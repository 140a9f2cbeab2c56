"""Tests for a CUDA device. Without one they skip, unless ``LYNX_GPU_DRY_RUN=1`` runs the same bodies on the CPU.

A dry run proves that the tests run. It proves nothing about a GPU.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lynx_parallel.pipeline import LynxPipeline
from tests.helpers.dry_run import DRY_RUN


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The CUDA device, or the CPU in a dry run."""
    if os.environ.get(DRY_RUN) == "1":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip(f"no CUDA device; {DRY_RUN}=1 runs the same tests on the CPU")
    return torch.device("cuda")


@pytest.fixture(scope="session", params=["float32", "bfloat16"])
def pipeline(request: pytest.FixtureRequest, demo: Path, device: torch.device) -> LynxPipeline:
    """The demo's model, Lynx full, on the device."""
    files = {"resampler": "resampler", "id": "ip_layers", "ref": "ref_layers"}
    adapters = {name: demo / "full" / f"{stem}.safetensors" for name, stem in files.items()}
    dtype = getattr(torch, request.param)
    return LynxPipeline.from_pretrained(demo / "wan", adapters, dtype=dtype, device=device)
