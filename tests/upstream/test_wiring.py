"""What the recordings can tell apart: each plausible mistake in the wiring, made on purpose, must show.

A mistake here is one function or constant of the reference, replaced.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.golden_cases import case_names, load_case, relative_error, requires_golden
from tests.upstream import lynx, wan

pytestmark = requires_golden

VISIBLE = 1e-3
"""A hundred times what a right wiring is allowed, on the final latents."""

ALL = case_names()
WITH_REFERENCE = ("full_a", "full_b", "mixed_a")
WITH_REGISTERS = ("full_a", "full_b")
THREE_BRANCHES = ("full_a", "mixed_a")


def rotated_query(q_BLHE: Tensor, turn_LE: Tensor) -> Tensor:
    return wan.rotate(q_BLHE, turn_LE)


def tokens_alone(tokens_BND: Tensor, adapter: wan.Weights) -> Tensor:
    return tokens_BND


def registers_first(tokens_BND: Tensor, adapter: wan.Weights) -> Tensor:
    return torch.cat([adapter["registers"], tokens_BND], dim=1)


def swapped_key_norm(model: wan.Wan, k_BND: Tensor, adapter: wan.Weights, attention: wan.Weights) -> Tensor:
    if "registers" in adapter:
        return wan.rms_norm(k_BND, wan.LITE_KEY_EPS)
    return wan.rms_norm(k_BND, model.eps, attention["norm_k.weight"])


def swapped_guide(v: dict[str, Tensor], guidance_scale: float, guidance_scale_i: float | None) -> Tensor:
    c, u, i = v["image_only"], v["uncond"], v["cond"]
    return u + guidance_scale_i * (i - u) + guidance_scale * (c - i)


def zero_tokens(resampler: wan.Weights) -> Tensor:
    return torch.zeros_like(lynx.resample(resampler, torch.zeros(1, 1, 512)))


def black_picture() -> Tensor:
    return torch.full((1, 3, 1, 256, 256), -1.0)


MISTAKES: dict[str, tuple[Any, str, Any, tuple[str, ...]]] = {
    "the reference query is rotated": (wan, "reference_query", rotated_query, WITH_REFERENCE),
    "registers are left out": (wan, "with_registers", tokens_alone, WITH_REGISTERS),
    "lite's ID key norm in full, and full's in lite": (wan, "id_key_norm", swapped_key_norm, ALL),
    "branches c and i are swapped": (lynx, "guide", swapped_guide, THREE_BRANCHES),
    "the reference pass reads another text": (lynx, "REFERENCE_TEXT", "image of a hand", WITH_REFERENCE),
    "the reference pass is at another timestep": (lynx, "REFERENCE_TIMESTEP", 1, WITH_REFERENCE),
    "unconditional ID tokens are zeros": (lynx, "no_face_tokens", zero_tokens, ALL),
    "the unconditional picture is black": (lynx, "grey_picture", black_picture, WITH_REFERENCE),
}


def final_error(name: str, **changed: Any) -> float:
    """Relative error of a case's final latents, with some settings changed."""
    case = load_case(name)
    settings = case.sampling | {"decode": False} | changed
    inputs = {"face_embedding": case.expected["face_embedding"], "face_crop": case.crop}
    out = lynx.generate(case.base, case.adapters, **settings, **inputs)
    return relative_error(out["final_latents"], case.expected["final_latents"])


@pytest.mark.parametrize(
    ("mistake", "name"),
    [(mistake, name) for mistake, (*_, names) in MISTAKES.items() for name in names],
)
def test_mistake_shows(mistake: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, attribute, replacement, _ = MISTAKES[mistake]
    monkeypatch.setattr(module, attribute, replacement)
    assert final_error(name) > VISIBLE


@pytest.mark.parametrize("name", ALL)
def test_the_later_sigma_schedule_shows(name: str) -> None:
    assert final_error(name, sigma_schedule="diffusers") > VISIBLE


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_the_mode_of_the_reference_latent_shows(name: str) -> None:
    """Faintly, 5e-4 to 1e-3: with the VAE's narrow posterior a sample is close to the mode."""
    assert final_error(name, reference_latent="mode") > VISIBLE / 5


def test_place_of_the_registers_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention has no order of keys: this is a freedom, not a mistake the recordings fail to see."""
    monkeypatch.setattr(wan, "with_registers", registers_first)
    assert final_error("full_a") < 1e-5
