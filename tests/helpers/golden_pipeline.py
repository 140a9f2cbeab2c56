"""Runs a recorded case through LynxPipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.pipeline import LynxPipeline, ShotInputs
from lynx_parallel.stages.conditioning import reference_features
from lynx_parallel.stages.denoise import Step
from lynx_parallel.stages.latents import decode
from tests.helpers.golden_cases import Case

TOLERANCE = 1e-5
"""Another stack's fp32: rounding grows over the steps. What is measured is 8e-7."""


DECODED_TOLERANCE = 1e-4


def load_pipeline(
    case: Case,
    *,
    keep_projections: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> LynxPipeline:
    """The case's adapters on the tiny Wan."""
    names = {"resampler": "resampler", "ip_layers": "id", "ref_layers": "ref"}
    adapters: dict[str, str | Path] = {names[stem]: path for stem, path in case.adapters.items()}
    return LynxPipeline.from_pretrained(
        case.base, adapters, dtype=dtype, device=device, keep_projections=keep_projections
    )


def case_sampling(case: Case) -> Sampling:
    """The case's settings; the reference draws the posterior."""
    settings = {name: value for name, value in case.sampling.items() if name != "prompt"}
    if settings["ref_scale"] is None:  # lite has none
        del settings["ref_scale"]
    return Sampling(**settings, reference_latent="sample")


def prepare(case: Case, pipeline: LynxPipeline) -> ShotInputs:
    sampling = case_sampling(case)
    person = pipeline.identify(
        sampling,
        image=case.folder / "subject.png",
        landmarks=case.expected["landmarks"].numpy(),
        embedding=case.expected["face_embedding"].numpy(),
    )
    return pipeline.prepare(case.settings["prompt"], sampling, person)


def run_case(case: Case, **loading: Any) -> dict[str, torch.Tensor]:
    """Every tensor a case may hold, made by the product; ``loading``: of ``load_pipeline``."""
    pipeline, sampling = load_pipeline(case, **loading), case_sampling(case)
    inputs = prepare(case, pipeline)
    made = {
        "id_tokens": inputs.id_tokens,
        "id_tokens_uncond": inputs.id_tokens_uncond,
        "prompt_embeds": inputs.prompt_embeds,
        "negative_prompt_embeds": inputs.negative_prompt_embeds,
        "initial_latents": inputs.noise,
    }
    if pipeline.transformer.has_reference:
        for name, unconditional in (("ref_features", False), ("ref_features_uncond", True)):
            features = reference_features(
                pipeline.transformer, inputs, pipeline.conditioning, unconditional=unconditional
            )
            made |= {f"{name}.{i}": feature for i, feature in enumerate(features)}
    steps: list[Step] = []
    made["final_latents"] = pipeline.denoise(inputs, sampling, steps.append)
    names = {"c": "noise_cond", "i": "noise_image_only", "u": "noise_uncond"}
    made |= {names[branch]: velocity for branch, velocity in steps[0].velocities.items()}
    scheduler = pipeline.make_scheduler(sampling)
    made["timesteps"], made["sigmas"] = scheduler.timesteps, scheduler.sigmas
    made["decoded_video"] = decode(pipeline.vae, made["final_latents"])
    return made
