"""The demo campaign through the whole command line, its rank on the device."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import torch

from tests.helpers.command import COMMAND, PATIENCE_S

SHOTS = 4


def render(campaign: Path, output: Path, device: torch.device) -> dict[str, str]:
    """Renders the campaign on one rank; returns the digests of the latents by shot."""
    run = subprocess.run(
        [*COMMAND, campaign, "--device", device.type, "--ulysses", "1", "--set", f"output={output}"],
        env=os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_memory_monitor_refresh_ms": "0"},
        cwd=campaign.parent, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{SHOTS} rendered, 0 encoded, 0 already done, 0 failed" in run.stdout
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.glob("*/*.latents.safetensors"))
    }


def test_the_demo_campaign_twice(campaign: Path, tmp_path: Path, device: torch.device) -> None:
    first = render(campaign, tmp_path / "first", device)
    assert len(first) == len(set(first.values())) == SHOTS
    assert len(list((tmp_path / "first").glob("*/*.mp4"))) == SHOTS
    name = torch.cuda.get_device_name(0) if device.type == "cuda" else "cpu"
    for path in (tmp_path / "first").glob("[!.]*/*.json"):
        (rank,) = json.loads(path.read_text())["ranks"]
        assert name in rank.values(), rank
    assert render(campaign, tmp_path / "second", device) == first
