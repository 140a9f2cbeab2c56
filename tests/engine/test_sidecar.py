"""What the sidecar adds to what the rank reports."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from lynx_parallel.engine.sidecar import make_sidecar
from lynx_parallel.inputs.layout import Layout
from lynx_parallel.plan.plan import Known, make_plan
from lynx_parallel.rank.messages import Hello, Rendered
from tests.helpers.campaigns import FULL, MANIFEST, WEIGHTS, load, write


@pytest.mark.parametrize(
    ("vae_dtype", "exactness"),
    [
        ("float32", {"decode": "tiled"}),
        ("tf32", {"decode": "tiled", "vae": "tf32"}),
        ("bfloat16", {"decode": "tiled", "vae": "bfloat16"}),
    ],
)
def test_a_coarser_vae_stands_under_exactness(tmp_path: Path, vae_dtype: str, exactness: dict[str, str]) -> None:
    write(tmp_path)
    (tmp_path / "full.yaml").write_text(FULL.replace("dtype: float32", f"dtype: float32\n  vae_dtype: {vae_dtype}"))
    campaign = load(tmp_path)
    [item, *_] = make_plan(campaign, WEIGHTS, today=date(2026, 1, 1)).items
    ranks = [Hello(1, "here", "cpu", "sdpa", "0")]
    sidecar = make_sidecar(
        item, campaign.pipeline.model, Rendered({}, {}, {"decode": "tiled"}), {}, layout=Layout(), ranks=ranks,
        sharded=False, attempt=1, seconds=1.0,
    )  # fmt: skip
    assert sidecar["exactness"] == exactness
    assert sidecar["model"]["vae_dtype"] == vae_dtype


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        ({}, ["a line of the rank"]),
        ({"A woman walks.": "600 tokens"}, ["prompt: 600 tokens", "a line of the rank"]),
        (
            {"A woman walks.": "600 tokens", "bad": "700 tokens", "A man walks.": "800 tokens"},
            ["prompt: 600 tokens", "negative prompt: 700 tokens", "a line of the rank"],
        ),
    ],
)
def test_what_the_model_did_not_see(tmp_path: Path, cut: dict[str, str], expected: list[str]) -> None:
    write(tmp_path)
    campaign = load(tmp_path, MANIFEST, "sampling.negative_prompt=bad")
    [item, *_] = make_plan(campaign, Known(WEIGHTS, cut=cut), today=date(2026, 1, 1)).items
    sidecar = make_sidecar(
        item, campaign.pipeline.model, Rendered({}, {}, {}, warnings=("a line of the rank",)), {}, layout=Layout(),
        ranks=[Hello(1, "here", "cpu", "sdpa", "0")], sharded=False, attempt=1, seconds=1.0,
    )  # fmt: skip
    assert sidecar["warnings"] == expected
