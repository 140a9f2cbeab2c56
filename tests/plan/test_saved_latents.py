"""Saved latents of finished shots, and the VAE that fits them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lynx_parallel.errors import RenderError
from lynx_parallel.output.checksums import sha256_file
from lynx_parallel.output.folder import Output
from lynx_parallel.plan.saved_latents import LatentsFinder


@pytest.fixture
def output(tmp_path: Path) -> Output:
    (tmp_path / "ada.latents.safetensors").write_bytes(b"latents")
    (tmp_path / "base" / "vae").mkdir(parents=True)
    (tmp_path / "base" / "vae" / "config.json").write_text("{}")
    return Output(tmp_path)


def sidecar(output: Output, **changes: Any) -> dict[str, Any]:
    sha256 = sha256_file(output.folder / "base" / "vae" / "config.json")
    return {
        "outputs": {"latents": {"size": 7, "sha256": "5" * 64}},
        "settings": {"weights.base/vae/config.json": sha256, "weights.base/transformer/config.json": "other"},
        "encoding": {"sampling.fps": 24.0},
        "model": {"base": str(output.folder / "base"), "vae_dtype": "tf32"},
        "exactness": {"decode": "tiled"},
        **changes,
    }


def test_how_the_render_decoded_them(output: Output) -> None:
    found = LatentsFinder(output).find("ada", sidecar(output))
    assert (found.path, found.vae) == (output.path("ada", "latents"), output.folder / "base" / "vae")
    assert (found.sha256, found.vae_dtype, found.tiled, found.fps) == ("5" * 64, "tf32", True, 24)


def test_defaults_of_earlier_versions(output: Output) -> None:
    old = sidecar(output, model={"base": str(output.folder / "base")}, exactness={"decode": "rows over 2 ranks"})
    found = LatentsFinder(output).find("ada", old)
    assert (found.vae_dtype, found.tiled) == ("float32", False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"outputs": {"video": {}}}, "no saved latents"),
        ({"outputs": {"latents": {"size": 8}}}, "its latents are missing or damaged"),
        ({"model": None}, "its sidecar does not name the base"),
        ({"model": {"base": "demo:huge"}}, "demo:huge: no such demo weights here"),
        ({"model": {"base": "/nowhere"}}, "/nowhere/vae: missing: the VAE that made the video"),
        ({"settings": {"weights.base/vae/config.json": "0" * 64}}, "vae/config.json: not the file that made the video"),
        ({"settings": {"weights.base/vae/weights": "0" * 64}}, "vae/weights: No such file or directory"),
    ],
)
def test_reasons(output: Output, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(RenderError, match=reason):
        LatentsFinder(output).find("ada", sidecar(output, **changes))
