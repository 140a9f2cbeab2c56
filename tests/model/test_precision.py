"""TF32 is used only where it was asked for. Without a GPU, the tests check torch's flags."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lynx_parallel.inputs.pipeline import VaeDtype
from lynx_parallel.model.precision import convolutions_in, use_ieee
from lynx_parallel.pipeline import LynxPipeline
from lynx_parallel.subject.picture import read_picture
from tests.helpers.repository import REPOSITORY

PICTURE = REPOSITORY / "manifests" / "faces" / "drawn.png"
LANDMARKS = [[20, 20], [40, 20], [30, 32], [22, 42], [38, 42]]
ADAPTERS = {"resampler": "resampler", "id": "ip_layers", "ref": "ref_layers"}
SAMPLING: dict[str, Any] = {"width": 64, "height": 48, "num_frames": 5, "num_inference_steps": 1}


def convolutions() -> str:
    return torch.backends.cudnn.conv.fp32_precision


@pytest.fixture(autouse=True)
def torch_as_imported() -> Iterator[None]:
    """torch's own defaults, which other tests may have changed: convolutions in TF32."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    yield
    use_ieee()


def test_use_ieee() -> None:
    assert convolutions() == "tf32"
    torch.set_float32_matmul_precision("medium")
    use_ieee()
    assert (convolutions(), torch.backends.cuda.matmul.fp32_precision) == ("ieee", "ieee")
    # The old API raises where it contradicts the new one.
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
    with torch.backends.cudnn.flags(enabled=True):
        pass


def test_the_precision_of_a_block_ends_with_it() -> None:
    use_ieee()
    with convolutions_in("tf32"):
        assert (convolutions(), torch.backends.cudnn.allow_tf32) == ("tf32", True)
        with convolutions_in("ieee"):
            assert (convolutions(), torch.backends.cudnn.allow_tf32) == ("ieee", False)
        assert convolutions() == "tf32"
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert convolutions() == "ieee"
    with pytest.raises(ZeroDivisionError), convolutions_in("tf32"):
        raise ZeroDivisionError
    assert (convolutions(), torch.backends.cudnn.allow_tf32) == ("ieee", False)


def load(demo: Path, vae_dtype: VaeDtype) -> LynxPipeline:
    return LynxPipeline.from_pretrained(
        demo / "wan",
        {name: demo / "full" / f"{stem}.safetensors" for name, stem in ADAPTERS.items()},
        face={"detector": "demo:faces", "recognizer": "demo:faces"},
        dtype=torch.float32,
        vae_dtype=vae_dtype,
    )


def spy(seen: dict[str, set[tuple[str, torch.dtype]]], name: str, module: nn.Module) -> None:
    """Notes the precision in force, and the dtype of the weights, whenever a convolution of the module runs."""

    def note(convolution: nn.Module, _: Any) -> None:
        seen.setdefault(name, set()).add((convolutions(), convolution.weight.dtype))  # type: ignore[arg-type]

    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Conv3d):
            part.register_forward_pre_hook(note)


@pytest.mark.parametrize(
    ("vae_dtype", "vae"),
    [
        ("float32", ("ieee", torch.float32)),
        ("tf32", ("tf32", torch.float32)),
        ("bfloat16", ("ieee", torch.bfloat16)),
    ],
)
def test_a_pipeline_in_float32(demo: Path, vae_dtype: VaeDtype, vae: tuple[str, torch.dtype]) -> None:
    pipeline = load(demo, vae_dtype)
    seen: dict[str, set[tuple[str, torch.dtype]]] = {}
    assert pipeline.faces is not None
    spy(seen, "ArcFace", pipeline.faces.recognizer)
    spy(seen, "patch embedding", pipeline.transformer)
    spy(seen, "encoder", pipeline.vae.encoder)
    spy(seen, "decoder", pipeline.vae.decoder)
    made = pipeline("A face", image=read_picture(PICTURE), landmarks=LANDMARKS, **SAMPLING)
    exact = {("ieee", torch.float32)}
    assert seen == {"ArcFace": exact, "patch embedding": exact, "encoder": {vae}, "decoder": {vae}}
    assert made.frames.shape == (5, 48, 64, 3)
    assert made.latents.dtype == torch.float32


def test_a_vae_in_bfloat16_is_near_the_one_in_float32(demo: Path) -> None:
    latents = torch.randn(1, 16, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    exact, coarse = (load(demo, dtype).decode(latents).astype(int) for dtype in ("float32", "bfloat16"))
    assert 0 < np.abs(exact - coarse).mean() < 2
