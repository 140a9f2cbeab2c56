"""Every kind of base: without identity against diffusers' own pipelines, with it against the straight-line model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline, WanPipeline
from diffusers import WanTransformer3DModel as Transformer
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionModel

from lynx_parallel.demo.faces import LANDMARKS
from lynx_parallel.inputs.embedding_file import read_embedding
from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.pipeline import LynxPipeline, ShotInputs
from lynx_parallel.subject.picture import read_picture, ref_crop
from tests.helpers.golden_cases import relative_error
from tests.helpers.repository import REPOSITORY
from tests.helpers.tiny_bases import BOUNDARY, Kind, write_base
from tests.upstream import lynx as upstream

TOLERANCE = 1e-5
PROMPT = "A cat on a sofa"
KINDS: tuple[Kind, ...] = ("T2V", "T2V-A14B", "I2V", "I2V-A14B")
FACES = REPOSITORY / "manifests" / "faces"
SMALL: dict[str, Any] = {
    "width": 80, "height": 48, "num_frames": 9, "num_inference_steps": 4, "seed": 11, "flow_shift": 5.0,
    "negative_prompt": "overexposed, static", "ip_scale": 0.0, "ref_scale": 0.0, "sigma_schedule": "diffusers",
}  # fmt: skip
"""At shift 5, two of four steps are of high noise."""


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("bases") / request.param, demo, request.param)


def adapters(base: Path, demo: Path) -> dict[str, Path]:
    files = {"resampler": "resampler", "id": "ip_layers", "ref": "ref_layers"}
    if base.name == "I2V":  # takes no ID
        files = {"ref": "ref_layers"}
    return {name: demo / "full" / f"{file}.safetensors" for name, file in files.items()}


def load(base: Path, demo: Path, **settings: Any) -> LynxPipeline:
    return LynxPipeline.from_pretrained(base, adapters(base, demo), dtype=torch.float32, **settings)


def picture(width: int = 80, height: int = 48) -> np.ndarray:
    return np.asarray(Image.fromarray(read_picture(FACES / "drawn.png")).resize((width, height)))


def prepare(pipeline: LynxPipeline, base: Path, sampling: Sampling) -> ShotInputs:
    person = pipeline.identify(
        sampling,
        image=FACES / "astronaut.jpg",
        landmarks=LANDMARKS["astronaut"],
        embedding=FACES / "astronaut.safetensors",
    )
    first = picture() if base.name.startswith("I2V") else None
    return pipeline.prepare(PROMPT, sampling, person, start_image=first)


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
        kind, more = WanImageToVideoPipeline, {"image": Image.fromarray(picture())}
        if base.name == "I2V":
            parts["image_encoder"] = CLIPVisionModel.from_pretrained(base / "image_encoder")
            parts["image_processor"] = CLIPImageProcessor.from_pretrained(base / "image_processor")
        else:
            parts |= {"image_encoder": None, "image_processor": None}
    made = kind(**parts)(
        prompt_embeds=inputs.prompt_embeds, negative_prompt_embeds=inputs.negative_prompt_embeds,
        latents=inputs.noise, height=settings.height, width=settings.width, num_frames=settings.num_frames,
        num_inference_steps=settings.num_inference_steps, guidance_scale=settings.guidance_scale,
        guidance_scale_2=settings.guidance_scale_2, output_type="latent", **more,
    )  # fmt: skip
    return made.frames


WITH_IDENTITY: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "as they are": (KINDS, {}),
    "two branches": (KINDS, {"guidance_scale_i": None}),
    "another guidance": (("T2V-A14B", "I2V-A14B"), {"guidance_scale_2": 3.0}),
    "another boundary": (("T2V-A14B", "I2V-A14B"), {"boundary_ratio": 0.95}),
    "adapters on high noise": (("T2V-A14B", "I2V-A14B"), {"adapters_expert": "high_noise"}),
    "adapters on low noise": (("T2V-A14B",), {"adapters_expert": "low_noise"}),
}


@pytest.mark.parametrize("case", WITH_IDENTITY)
def test_with_identity(base: Path, demo: Path, case: str) -> None:
    """Against the straight-line model."""
    kinds, changes = WITH_IDENTITY[case]
    if base.name not in kinds:
        pytest.skip("for other bases")
    on = {"adapters_expert": changes.pop("adapters_expert")} if "adapters_expert" in changes else {}
    settings = {**SMALL, "ip_scale": 0.9, "ref_scale": 0.7, **changes}
    pipeline = load(base, demo, **on)
    inputs = prepare(pipeline, base, Sampling(**settings))
    crop = ref_crop(read_picture(FACES / "astronaut.jpg"), LANDMARKS["astronaut"])
    names = {"resampler": "resampler", "id": "ip_layers", "ref": "ref_layers"}
    of_file = {names[name]: path for name, path in adapters(base, demo).items()}
    if base.name in BOUNDARY:
        settings.setdefault("boundary_ratio", BOUNDARY[base.name])
    expected = upstream.generate(
        base, of_file, prompt=PROMPT, face_crop=crop, decode=False, reference_latent="mode",
        face_embedding=torch.from_numpy(read_embedding(FACES / "astronaut.safetensors")),
        start_image=picture() if base.name.startswith("I2V") else None,
        **{"guidance_scale": 5.0, "guidance_scale_i": 2.0, **settings, **on},
    )  # fmt: skip
    assert relative_error(pipeline.denoise(inputs, Sampling(**settings)), expected["final_latents"]) < TOLERANCE


@pytest.mark.parametrize("scale_2", [None, 3.0, 1.0])
def test_final_latents(base: Path, demo: Path, scale_2: float | None) -> None:
    if scale_2 is not None and not (base / "transformer_2").exists():
        pytest.skip("guidance_scale_2 is for two experts")
    settings = Sampling(**SMALL, guidance_scale_2=scale_2)
    pipeline = load(base, demo)
    inputs = prepare(pipeline, base, settings)
    expected = of_diffusers(base, inputs, settings)
    assert relative_error(pipeline.denoise(inputs, settings), expected) < TOLERANCE
