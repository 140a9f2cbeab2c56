"""Every kind of base: without identity against diffusers' own pipelines, with it against the straight-line model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline, WanPipeline
from diffusers import WanTransformer3DModel as Transformer
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionModel

from lynx_parallel.demo.faces import LANDMARKS
from lynx_parallel.inputs.embedding_file import read_embedding
from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.pipeline import LynxPipeline, ShotInputs
from lynx_parallel.subject.picture import read_picture, ref_crop
from tests.helpers.golden_cases import relative_error
from tests.helpers.tiny_bases import (
    BOUNDARY,
    FACES,
    PROMPT,
    Kind,
    adapter_files,
    first_frame,
    load_tiny,
    prepare_tiny,
    weights_of,
    write_base,
)
from tests.upstream import lynx as upstream

TOLERANCE = 1e-5
KINDS: tuple[Kind, ...] = ("T2V", "T2V-A14B", "I2V", "I2V-A14B")
EXPERTS: tuple[Kind, ...] = ("T2V-A14B", "I2V-A14B")
SMALL: dict[str, Any] = {
    "width": 80, "height": 48, "num_frames": 9, "num_inference_steps": 4, "seed": 11, "flow_shift": 5.0,
    "negative_prompt": "overexposed, static", "ip_scale": 0.0, "ref_scale": 0.0, "sigma_schedule": "diffusers",
}  # fmt: skip
"""At shift 5, two of four steps are of high noise."""


@pytest.fixture(scope="module")
def bases(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {kind: write_base(folder / kind, demo, kind) for kind in KINDS}


def of_diffusers(base: Path, inputs: ShotInputs, settings: Sampling) -> torch.Tensor:
    parts: dict[str, Any] = {
        "transformer": Transformer.from_pretrained(base / "transformer"),
        "vae": AutoencoderKLWan.from_pretrained(base / "vae"),
        "scheduler": UniPCMultistepScheduler.from_pretrained(base / "scheduler", flow_shift=settings.flow_shift),
        "text_encoder": None, "tokenizer": None,
    }  # fmt: skip
    if (base / "transformer_2").exists():
        ratio = BOUNDARY[base.name]
        parts |= {"transformer_2": Transformer.from_pretrained(base / "transformer_2"), "boundary_ratio": ratio}
    kind, more = WanPipeline, {}
    if base.name.startswith("I2V"):
        kind, more = WanImageToVideoPipeline, {"image": Image.fromarray(first_frame())}
        if base.name == "I2V":
            parts["image_encoder"] = CLIPVisionModel.from_pretrained(base / "image_encoder")
            parts["image_processor"] = CLIPImageProcessorPil.from_pretrained(base / "image_processor")
        else:
            parts |= {"image_encoder": None, "image_processor": None}
    made = kind(**parts)(
        prompt_embeds=inputs.prompt_embeds, negative_prompt_embeds=inputs.negative_prompt_embeds,
        latents=inputs.noise, height=settings.height, width=settings.width, num_frames=settings.num_frames,
        num_inference_steps=settings.num_inference_steps, guidance_scale=settings.guidance_scale,
        guidance_scale_2=settings.guidance_scale_2, output_type="latent", **more,
    )  # fmt: skip
    return made.frames


WITH_IDENTITY: dict[str, tuple[tuple[Kind, ...], dict[str, Any]]] = {
    "as they are": (KINDS, {}),
    "two branches": (KINDS, {"guidance_scale_i": None}),
    "another guidance": (EXPERTS, {"guidance_scale_2": 3.0}),
    "another boundary": (EXPERTS, {"boundary_ratio": 0.95}),
    "adapters on high noise": (EXPERTS, {"adapters_expert": "high_noise"}),
    "adapters on low noise": (("T2V-A14B",), {"adapters_expert": "low_noise"}),
}


@pytest.mark.parametrize(("kind", "case"), [(kind, case) for case, (of, _) in WITH_IDENTITY.items() for kind in of])
def test_with_identity(bases: dict[Kind, Path], demo: Path, kind: Kind, case: str) -> None:
    """Against the straight-line model."""
    base, settings = bases[kind], {**SMALL, "ip_scale": 0.9, "ref_scale": 0.7, **WITH_IDENTITY[case][1]}
    expert = settings.pop("adapters_expert", None)
    pipeline = LynxPipeline.from_files(replace(weights_of(base, demo), adapters_on=expert), dtype=torch.float32)
    inputs = prepare_tiny(pipeline, base, Sampling(**settings))
    names = {"resampler": "resampler", "id": "ip_layers", "ref": "ref_layers"}
    expected = upstream.generate(
        base, {names[name]: path for name, path in adapter_files(base, demo).items()}, prompt=PROMPT,
        face_embedding=torch.from_numpy(read_embedding(FACES / "astronaut.safetensors")),
        face_crop=ref_crop(read_picture(FACES / "astronaut.jpg"), LANDMARKS["astronaut"]),
        start_image=first_frame() if kind in ("I2V", "I2V-A14B") else None, reference_latent="mode", decode=False,
        adapters_expert=expert,
        **{"guidance_scale": 5.0, "guidance_scale_i": 2.0, "boundary_ratio": BOUNDARY.get(kind), **settings},
    )  # fmt: skip
    assert relative_error(pipeline.denoise(inputs, Sampling(**settings)), expected["final_latents"]) < TOLERANCE


@pytest.mark.parametrize(
    ("kind", "scale_2"),
    [*((kind, None) for kind in KINDS), *((kind, scale) for kind in EXPERTS for scale in (3.0, 1.0))],
)
def test_without_identity(bases: dict[Kind, Path], demo: Path, kind: Kind, scale_2: float | None) -> None:
    """Against diffusers' own pipeline."""
    settings = Sampling(**SMALL, guidance_scale_2=scale_2)
    pipeline = load_tiny(bases[kind], demo)
    inputs = prepare_tiny(pipeline, bases[kind], settings)
    expected = of_diffusers(bases[kind], inputs, settings)
    assert relative_error(pipeline.denoise(inputs, settings), expected) < TOLERANCE
