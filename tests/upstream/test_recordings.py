"""The reference against the recordings: every recorded tensor, of every case."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers.golden_cases import GOLDEN, Case, case_names, load_case, relative_error, requires_golden
from tests.upstream import lynx

pytestmark = requires_golden

INPUTS = {"landmarks", "face_embedding"}
EXACT = {"initial_latents", "timesteps"}
"""Drawn, or counted: nothing to round."""
TOLERANCE = 1e-5
VIDEO_TOLERANCE = 1e-4
"""The VAE clamps and amplifies what small differences the latents have."""


@pytest.fixture(scope="module", params=case_names())
def case(request: pytest.FixtureRequest) -> Case:
    return load_case(request.param)


@pytest.fixture(scope="module")
def actual(case: Case) -> dict[str, Tensor]:
    return lynx.generate(
        case.base,
        case.adapters,
        **case.sampling,
        face_embedding=case.expected["face_embedding"],
        face_crop=case.crop,
    )


def test_no_case_is_left_out() -> None:
    assert {folder.name for folder in (GOLDEN / "cases").iterdir()} == set(case_names())


def test_every_recorded_tensor_is_made(case: Case, actual: dict[str, Tensor]) -> None:
    assert set(actual) == set(case.expected) - INPUTS


def test_every_recorded_tensor_agrees(case: Case, actual: dict[str, Tensor]) -> None:
    compared = {name: expected for name, expected in case.expected.items() if name not in INPUTS}
    too_far = {}
    for name, expected in compared.items():
        assert actual[name].dtype == expected.dtype, name
        tolerance = VIDEO_TOLERANCE if name == "decoded_video" else TOLERANCE
        error = relative_error(actual[name], expected)
        if not error <= tolerance:  # so that NaN is too far as well
            too_far[name] = error
    assert not too_far


@pytest.mark.parametrize("name", sorted(EXACT))
def test_what_is_not_rounded_is_equal(name: str, case: Case, actual: dict[str, Tensor]) -> None:
    assert torch.equal(actual[name], case.expected[name])


@pytest.mark.parametrize(
    ("guidance", "branches"),
    [
        ((5.0, 2.0), {"noise_cond", "noise_uncond", "noise_image_only"}),
        ((5.0, None), {"noise_cond", "noise_uncond"}),
        ((1.0, 2.0), {"noise_cond"}),
    ],
)
def test_guidance_settles_the_branches(guidance: tuple[float, float | None], branches: set[str]) -> None:
    case = load_case("full_a")
    settings = dict(zip(("guidance_scale", "guidance_scale_i"), guidance, strict=True))
    out = lynx.generate(
        case.base,
        case.adapters,
        **case.sampling | settings | {"num_inference_steps": 1, "decode": False},
        face_embedding=case.expected["face_embedding"],
        face_crop=case.crop,
    )
    assert {name for name in out if name.startswith("noise_")} == branches
    for name in branches:  # what a branch sees does not depend on the other branches
        assert relative_error(out[name], case.expected[name]) <= TOLERANCE
