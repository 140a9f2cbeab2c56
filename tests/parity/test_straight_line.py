"""LynxPipeline against the straight-line reference, on the demo's weights: parity without the recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lynx_parallel.demo.faces import LANDMARKS
from lynx_parallel.inputs.embedding_file import read_embedding
from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.model import block as block_module
from lynx_parallel.model.adapters import IDProjection
from lynx_parallel.model.attention import LocalTokens
from lynx_parallel.pipeline import LynxPipeline
from lynx_parallel.stages.denoise import Phase
from lynx_parallel.stages.latents import decode
from lynx_parallel.subject.picture import read_picture, ref_crop
from tests.helpers.golden_cases import relative_error
from tests.helpers.repository import REPOSITORY
from tests.upstream import lynx as upstream

TOLERANCE = 1e-5
"""fp32 on both sides, summed in another order; what is measured is 1e-6 to 2e-6."""

FACES = REPOSITORY / "manifests" / "faces"
PROMPT = "A person carves a pumpkin on a porch in the evening"
SMALL: dict[str, Any] = {
    "width": 80, "height": 48, "num_frames": 5, "num_inference_steps": 3, "seed": 11,
    "negative_prompt": "overexposed, static", "ip_scale": 0.9, "ref_scale": 0.7,
}  # fmt: skip

VARIANTS: dict[str, tuple[str, str | None]] = {
    "full": ("full", "full"),
    "lite": ("lite", None),
    "lite_id_full_ref": ("lite", "full"),
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "full, three branches": ("full", {}),
    "full, two branches": ("full", {"guidance_scale_i": None}),
    "full, one branch": ("full", {"guidance_scale": 1.0}),
    "full, no weight on u": ("full", {"guidance_scale_i": 1.0}),
    "full, sampled reference": ("full", {"reference_latent": "sample"}),
    "full, diffusers' sigmas": ("full", {"sigma_schedule": "diffusers", "flow_shift": 8.0}),
    "full, scales of zero": ("full", {"ip_scale": 0.0, "ref_scale": 0.0}),
    "lite": ("lite", {"guidance_scale_i": None}),
    "lite ID, full reference": ("lite_id_full_ref", {}),
}


def adapter_files(demo: Path, variant: str) -> dict[str, Path]:
    ids, ref = VARIANTS[variant]
    files = {"resampler": demo / ids / "resampler.safetensors", "ip_layers": demo / ids / "ip_layers.safetensors"}
    return files | ({"ref_layers": demo / ref / "ref_layers.safetensors"} if ref else {})


def product(demo: Path, variant: str, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    names = {"resampler": "resampler", "ip_layers": "id", "ref_layers": "ref"}
    adapters: dict[str, str | Path] = {names[k]: path for k, path in adapter_files(demo, variant).items()}
    pipeline = LynxPipeline.from_pretrained(demo / "wan", adapters, dtype=torch.float32)
    sampling = Sampling(**settings)
    person = pipeline.identify(
        sampling,
        image=FACES / "astronaut.jpg",
        landmarks=LANDMARKS["astronaut"],
        embedding=FACES / "astronaut.safetensors",
    )
    inputs = pipeline.prepare(PROMPT, sampling, person)
    latents = pipeline.denoise(inputs, sampling)
    return {"final_latents": latents, "decoded_video": decode(pipeline.vae, latents)}


def straight_line(demo: Path, variant: str, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    defaults = {"guidance_scale": 5.0, "guidance_scale_i": 2.0, "reference_latent": "mode"}
    crop = ref_crop(read_picture(FACES / "astronaut.jpg"), LANDMARKS["astronaut"])
    return upstream.generate(
        demo / "wan",
        adapter_files(demo, variant),
        prompt=PROMPT,
        face_embedding=torch.from_numpy(read_embedding(FACES / "astronaut.safetensors")),
        face_crop=crop,
        **{**defaults, **settings},
    )


@pytest.mark.parametrize("name", CASES)
def test_parity(demo: Path, name: str) -> None:
    variant, changes = CASES[name]
    settings = SMALL | changes
    made, expected = product(demo, variant, settings), straight_line(demo, variant, settings)
    for key, tensor in made.items():
        assert relative_error(tensor, expected[key]) < TOLERANCE, key


# Mistakes in the wiring, made in the product on purpose. Each must show.


def rotate_reference_query(monkeypatch: pytest.MonkeyPatch) -> None:
    original = block_module.LynxBlock.forward

    def forward(self: Any, x: Any, modulation: Any, rotary: Any, conditioning: Any, tokens: Any, *rest: Any) -> Any:
        class Rotated(LocalTokens):
            def attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
                is_reference = conditioning.reference is not None and k is conditioning.reference.k_BSHD
                return super().attention(block_module.rotate(q, rotary) if is_reference else q, k, v)

        return original(self, x, modulation, rotary, conditioning, Rotated(), *rest)

    monkeypatch.setattr(block_module.LynxBlock, "forward", forward)


def leave_registers_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: IDProjection, tokens: torch.Tensor, norm_k: Any) -> Any:
        return norm_k(self.to_k_ip(tokens)), self.to_v_ip(tokens)

    monkeypatch.setattr(IDProjection, "forward", forward)


def swap_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    original = LynxPipeline.phase

    def phase(self: LynxPipeline, *args: Any, **kwargs: Any) -> Phase:
        phase = original(self, *args, **kwargs)
        made = phase.branches
        return phase._replace(branches={"c": made["i"], "i": made["c"], "u": made["u"]})

    monkeypatch.setattr(LynxPipeline, "phase", phase)


def change_reference_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lynx_parallel.stages.shot_inputs.REFERENCE_PROMPT", "image of a hand")


@pytest.mark.parametrize("mistake", [rotate_reference_query, leave_registers_out, swap_branches, change_reference_text])
def test_a_wrong_wiring_shows(demo: Path, monkeypatch: pytest.MonkeyPatch, mistake: Any) -> None:
    expected = straight_line(demo, "full", SMALL)["final_latents"]
    mistake(monkeypatch)
    made = product(demo, "full", SMALL)["final_latents"]
    assert relative_error(made, expected) > 20 * TOLERANCE
