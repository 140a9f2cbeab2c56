"""Settings of one render, and the layers that change some of them. Imports neither torch nor Ray."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from lynx_parallel.inputs.strict import Strict, mistake, must

MAX_SEED = 2**63 - 1
REFERENCE_PROMPT = "image of a face"
"""Text of the reference pass."""


def _four_k_plus_one(value: int) -> int:
    if value % 4 != 1:
        raise ValueError
    return value


def _rising(window: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= window[0] <= window[1] <= 1:
        raise ValueError
    return window


def as_tuple(value: Any) -> Any:
    """Returns a list as a tuple, and anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def _falling(values: tuple[float, ...], top: float) -> tuple[float, ...]:
    if not values or len(values) > 1000 or values[0] > top or values[-1] <= 0:
        raise ValueError
    if any(first <= second for first, second in pairwise(values)):
        raise ValueError
    return values


def _block_list(text: str) -> str:
    parse_blocks(text)
    return text


def parse_blocks(text: str) -> frozenset[int] | None:
    """Returns the block numbers of ``"0-20,25"``, or None for ``"all"``.

    Raises:
        ValueError: neither.
    """
    if text == "all":
        return None
    blocks: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", part, re.ASCII)
        if found is None or (found[2] and int(found[2]) < int(found[1])):
            raise ValueError
        blocks.update(range(int(found[1]), int(found[2] or found[1]) + 1))
    return frozenset(blocks)


def _block_number(value: Any) -> Any:
    """Returns the number of one block, as YAML reads it, as text."""
    return str(value) if type(value) is int else value


Side = Annotated[int, Field(ge=16, le=4096, multiple_of=16), must("a multiple of 16 from 16 to 4096")]
Frames = Annotated[
    int,
    Field(ge=1, le=100001),
    AfterValidator(_four_k_plus_one),
    must("a whole number 4k+1 (1, 5, 9, … up to 100001)"),
]
MIN_FPS = 1 / 2000
"""Least frames per second that ffmpeg accepts."""
MAX_FPS = 240
Fps = Annotated[float, Field(ge=MIN_FPS, le=MAX_FPS), must("a number from 1/2000 (0.0005) to 240")]
Steps = Annotated[int, Field(ge=1, le=1000), must("a whole number from 1 to 1000")]
SchedulerName = Annotated[
    Literal["unipc", "dpm++", "dpm++_sde", "euler", "lcm", "rcm"],
    must("'unipc', 'dpm++', 'dpm++_sde', 'euler', 'lcm' or 'rcm'"),
]
RCM_STEPS = 4
"""Most steps of the scheduler rcm, whose sigmas are fixed."""
Sigmas = Annotated[
    tuple[float, ...],
    BeforeValidator(as_tuple),
    AfterValidator(lambda values: _falling(values, 1)),
    must("a falling list of numbers above 0, at most 1, such as [1, 0.96, 0.89, 0.73]"),
]
Timesteps = Annotated[
    tuple[float, ...],
    BeforeValidator(as_tuple),
    AfterValidator(lambda values: _falling(values, 1000)),
    must("a falling list of numbers above 0, at most 1000, such as [1000, 937, 833, 625]"),
]
Shift = Annotated[float, Field(gt=0), must("a finite number above 0")]
Ratio = Annotated[float, Field(gt=0, lt=1), must("a number between 0 and 1")]
Scale = Annotated[float, Field(ge=0), must("a finite number from 0")]
ReferenceSize = Annotated[int, Field(ge=128, le=1024, multiple_of=128), must("a multiple of 128 from 128 to 1024")]
Window = Annotated[
    tuple[float, float],
    BeforeValidator(as_tuple),
    AfterValidator(_rising),
    must("[start, end], fractions of the steps with 0 ≤ start ≤ end ≤ 1"),
]
Blocks = Annotated[
    str,
    BeforeValidator(_block_number, json_schema_input_type=str | int),
    AfterValidator(_block_list),
    must('a list of transformer blocks such as "0-20,25", or "all"'),
]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED), must("a whole number from 0 to 2^63-1")]
Schedule = Annotated[Literal["lynx", "diffusers"], must("'lynx' or 'diffusers'")]
Reference = Annotated[Literal["mode", "sample"], must("'mode' or 'sample'")]


class Sampling(Strict):
    """Settings of one render, under diffusers' and Lynx's own names."""

    width: Side = Field(default=832, description="Width of the video in pixels.")
    height: Side = Field(default=480, description="Height of the video in pixels.")
    num_frames: Frames = Field(
        default=81,
        description="Frames of the video. The VAE packs four frames into one latent frame, all but the first.",
    )
    fps: Fps = Field(default=16.0, description="Frames per second of the video file.")
    num_inference_steps: Steps = Field(default=50, description="Denoising steps.")
    scheduler: SchedulerName = Field(
        default="unipc",
        description="unipc (upstream's), dpm++, dpm++_sde and euler are for any model; lcm and rcm are for models "
        "distilled to few steps, because they add new noise in each step.",
    )
    flow_shift: Shift = Field(
        default=3.0,
        description="Shift of the flow-matching sigmas, applied once. rcm has sigmas of its own.",
    )
    sigma_schedule: Schedule = Field(
        default="lynx",
        description="Sigmas of unipc: lynx for upstream's, diffusers for diffusers' own. The other schedulers start "
        "from 1 − i/N.",
    )
    sigmas: Sigmas | None = Field(
        default=None,
        description="The sigma of each step, final: no shift applies. num_inference_steps is their number.",
    )
    timesteps: Timesteps | None = Field(default=None, description="The sigmas times 1000, in their place.")
    guidance_scale: Scale = Field(default=5.0, description="Strength of the text.")
    guidance_scale_2: Scale | None = Field(
        default=None,
        description="Strength of the text for the expert of low noise, where the base has two; null uses "
        "guidance_scale.",
    )
    boundary_ratio: Ratio | None = Field(
        default=None,
        description="The expert of high noise denoises at timesteps of at least 1000 times this; null uses the base's "
        "own.",
    )
    guidance_scale_i: Scale | None = Field(
        default=2.0,
        description="Strength of the identity; null runs two guidance branches instead of three.",
    )
    ip_scale: Scale = Field(default=1.0, description="Strength of the ID adapter: who it is.")
    ref_scale: Scale = Field(default=1.0, description="Strength of the Ref adapter: what the person looks like.")
    negative_prompt: str = Field(default="", description="What the video must not show.")
    reference_latent: Reference = Field(
        default="mode",
        description="How the reference crop is encoded: the mode of the VAE's posterior, or a sample drawn with "
        "seed + 1.",
    )
    reference_size: ReferenceSize = Field(
        default=256, description="Side of the face crop that the reference branch sees, in pixels."
    )
    identity_window: Window = Field(
        default=(0.0, 1.0),
        description="Identity acts in step i of N where start ≤ i/N < end; outside of it no branch knows it.",
    )
    ref_blocks: Blocks = Field(default="all", description="Transformer blocks with the reference branch.")
    seed: Seed = Field(default=42, description="Seed of the initial noise. Another seed gives another video.")


_MAY_BE_NULL = {"guidance_scale_i", "guidance_scale_2", "boundary_ratio", "sigmas", "timesteps"}


def sampling_mistake(sampling: Sampling) -> str | None:
    """Returns one line on settings that contradict each other, or None."""
    name, steps = sampling.scheduler, sampling.num_inference_steps
    for field in ("sigmas", "timesteps"):
        given = getattr(sampling, field)
        if given is not None and len(given) != steps:
            return f"{field} has {len(given)} values, num_inference_steps is {steps}: set it to {len(given)}"
    if sampling.sigmas is not None and sampling.timesteps is not None:
        return "sigmas and timesteps are both given: one of them is enough; set the other to null"
    if sampling.sigma_schedule != "lynx" and name != "unipc":
        return f"sigma_schedule {sampling.sigma_schedule} is for scheduler unipc only, not for {name}"
    if name == "rcm" and steps > RCM_STEPS and sampling.sigmas is None and sampling.timesteps is None:
        return f"scheduler rcm has 1 to {RCM_STEPS} steps, num_inference_steps is {steps}; or give sigmas"
    return None


class SamplingOverrides(Strict):
    """Settings that replace those of the pipeline. A setting that is left out keeps its value.

    Which ones were given is ``model_fields_set`` (``given()``). Only those of ``_MAY_BE_NULL`` may be given as None.
    """

    width: Side | None = None
    height: Side | None = None
    num_frames: Frames | None = None
    fps: Fps | None = None
    num_inference_steps: Steps | None = None
    scheduler: SchedulerName | None = None
    flow_shift: Shift | None = None
    sigma_schedule: Schedule | None = None
    sigmas: Sigmas | None = None
    timesteps: Timesteps | None = None
    guidance_scale: Scale | None = None
    guidance_scale_2: Scale | None = None
    boundary_ratio: Ratio | None = None
    guidance_scale_i: Scale | None = None
    ip_scale: Scale | None = None
    ref_scale: Scale | None = None
    negative_prompt: str | None = None
    reference_latent: Reference | None = None
    reference_size: ReferenceSize | None = None
    identity_window: Window | None = None
    ref_blocks: Blocks | None = None
    seed: Seed | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _null_is_no_value(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.field_name not in _MAY_BE_NULL:
            allowed = "a value (leave the key out to keep the setting)"
            raise mistake(allowed)
        return value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> dict[str, Any]:
        """Returns the JSON schema, with the descriptions of ``Sampling`` and without defaults."""
        made = handler.resolve_ref_schema(handler(core))
        for name, found in made["properties"].items():
            if name not in _MAY_BE_NULL:
                found.update(found.pop("anyOf")[0])
            found["description"] = Sampling.model_fields[name].description
            del found["default"]
        return made

    def given(self) -> dict[str, Any]:
        """Returns the fields that were given, by name."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}


def overlay(base: Sampling, *layers: SamplingOverrides) -> Sampling:
    """Returns ``base`` with the given fields of each layer. Later layers win."""
    update: dict[str, Any] = {}
    for layer in layers:
        update.update(layer.given())
    return base.model_copy(update=update) if update else base
