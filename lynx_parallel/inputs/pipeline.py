"""The pipeline file: everything that changes pixels except the shot itself."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from lynx_parallel.inputs.strict import Strict, Text, Version, must

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


Side = Annotated[int, Field(ge=16, le=4096, multiple_of=16), must("a multiple of 16 from 16 to 4096")]
Frames = Annotated[
    int,
    Field(ge=1, le=100001),
    AfterValidator(_four_k_plus_one),
    must("a whole number 4k+1 (1, 5, 9, … up to 100001)"),
]
MIN_FPS = 1 / 2000
"""Least frames per second that ffmpeg accepts."""
Fps = Annotated[float, Field(ge=MIN_FPS, le=240), must("a number from 1/2000 (0.0005) to 240")]
Steps = Annotated[int, Field(ge=1, le=1000), must("a whole number from 1 to 1000")]
Shift = Annotated[float, Field(gt=0), must("a finite number above 0")]
Scale = Annotated[float, Field(ge=0), must("a finite number from 0")]
ReferenceSize = Annotated[int, Field(ge=128, le=1024, multiple_of=128), must("a multiple of 128 from 128 to 1024")]
Window = Annotated[
    tuple[float, float],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
    AfterValidator(_rising),
    must("[start, end], fractions of the steps with 0 ≤ start ≤ end ≤ 1"),
]
Blocks = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if type(value) is int else value),  # one block, as YAML reads it
    AfterValidator(_block_list),
    must('a list of transformer blocks such as "0-20,25", or "all"'),
]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED), must("a whole number from 0 to 2^63-1")]
Schedule = Annotated[Literal["lynx", "diffusers"], must("'lynx' or 'diffusers'")]
Reference = Annotated[Literal["mode", "sample"], must("'mode' or 'sample'")]
VaeDtype = Annotated[Literal["float32", "tf32", "bfloat16"], must("'float32', 'tf32' or 'bfloat16'")]


class Sampling(Strict):
    """Settings of one render, under diffusers' and Lynx's own names.

    Attributes:
        width, height: pixels.
        num_frames: frames of the video, 4k+1 (the VAE packs four frames into one latent frame).
        fps: frames per second of the video file.
        num_inference_steps: denoising steps.
        flow_shift: shift of the flow-matching sigmas.
        sigma_schedule: ``lynx`` for upstream's sigmas, ``diffusers`` for diffusers' own.
        guidance_scale: strength of the text.
        guidance_scale_i: strength of the identity; None runs two guidance branches instead of three.
        ip_scale, ref_scale: strength of the ID and the Ref adapter.
        reference_latent: ``mode`` of the VAE posterior, or a ``sample`` drawn with seed+1.
        reference_size: side of the face crop that the reference branch sees, in pixels.
        identity_window: identity acts in step i of N where start ≤ i/N < end; outside of it no branch knows it.
        ref_blocks: transformer blocks with the reference branch.
        seed: of the initial noise.
    """

    width: Side = 832
    height: Side = 480
    num_frames: Frames = 81
    fps: Fps = 16.0
    num_inference_steps: Steps = 50
    flow_shift: Shift = 3.0
    sigma_schedule: Schedule = "lynx"
    guidance_scale: Scale = 5.0
    guidance_scale_i: Scale | None = 2.0
    ip_scale: Scale = 1.0
    ref_scale: Scale = 1.0
    negative_prompt: str = ""
    reference_latent: Reference = "mode"
    reference_size: ReferenceSize = 256
    identity_window: Window = (0.0, 1.0)
    ref_blocks: Blocks = "all"
    seed: Seed = 42


class SamplingOverrides(Strict):
    """Some fields of Sampling; which ones were given is ``model_fields_set`` (``given()``).

    ``guidance_scale_i`` may be given as None; no other field may.
    """

    width: Side | None = None
    height: Side | None = None
    num_frames: Frames | None = None
    fps: Fps | None = None
    num_inference_steps: Steps | None = None
    flow_shift: Shift | None = None
    sigma_schedule: Schedule | None = None
    guidance_scale: Scale | None = None
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
        if value is None and info.field_name != "guidance_scale_i":
            allowed = "a value (leave the key out to keep the setting)"
            raise PydanticCustomError("must", "must be {allowed}", {"allowed": allowed})
        return value

    def given(self) -> dict[str, Any]:
        """Returns the fields that were given, by name."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}


def overlay(base: Sampling, *layers: SamplingOverrides) -> Sampling:
    """Returns ``base`` with the given fields of each layer. Later layers win."""
    update: dict[str, Any] = {}
    for layer in layers:
        update.update(layer.given())
    return base.model_copy(update=update) if update else base


class AdapterFile(Strict):
    """The place of an adapter's weights: absolute path, ``hub:org/repo[@revision]/path`` or ``demo:name``."""

    file: Text = Field(description="a file, hub:org/repo/path or demo:name")
    license: Text | None = None

    def __str__(self) -> str:
        return self.file


def _short_form(value: Any) -> Any:
    return {"file": value} if isinstance(value, str) else value


Adapter = Annotated[AdapterFile, BeforeValidator(_short_form)]


class Adapters(Strict):
    """The Lynx weights; without ``ref`` (lite) no picture of the subject is needed."""

    resampler: Adapter = Field(description="a file, hub:org/repo/path or demo:name")
    id: Adapter = Field(description="a file, hub:org/repo/path or demo:name")
    ref: Adapter | None = None


class ModelSpec(Strict):
    """Weights and their precision.

    Attributes:
        base: a hub id ``org/name[@revision]``, an absolute folder or ``demo:name``.
        dtype: of the transformer, the resampler and the text encoder.
        vae_dtype: precision of the VAE. ``float32`` is true fp32. ``tf32`` has fp32 weights and computes convolutions
            in TF32, on CUDA only. ``tf32`` and ``bfloat16`` lose detail; how much faster they are is not measured.
    """

    base: Text = Field(description="a hub id org/name[@revision], a folder or demo:tiny")
    adapters: Adapters = Field(description="a mapping with resampler, id and, if wanted, ref")
    dtype: Annotated[Literal["bfloat16", "float32", "float16"], must("'bfloat16', 'float32' or 'float16'")] = "bfloat16"
    vae_dtype: VaeDtype = "float32"


class FaceSpec(Strict):
    """Models that find and recognise the face of subjects without given landmarks or embedding.

    Attributes:
        detector: an insightface pack (folder, or ``buffalo_l`` under ``~/.insightface/models``), a YuNet ``.onnx``
            file, or ``demo:faces``.
        recognizer: IR-SE50 ArcFace (``.pth`` or ``.safetensors``); ``arcface_ir_se50`` for facexlib's in the cache
            folder; or ``demo:faces``.
        recognizer_sha256: of another recognizer than facexlib's, on purpose.
        det_size: side of the square the detector sees, in pixels.
        rgb_quirk: pass RGB to insightface, which expects BGR, as upstream does.
    """

    detector: Text = Field(description="an insightface pack folder, a YuNet .onnx file or demo:faces")
    recognizer: Text = Field(description="the ArcFace file recognition_arcface_ir_se50.pth, or demo:faces")
    recognizer_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$"), must("64 hexadecimal digits")] | None = None
    det_size: Annotated[int, Field(ge=64, le=2048, multiple_of=32), must("a multiple of 32 from 64 to 2048")] = 640
    rgb_quirk: bool = True


class Video(Strict):
    """Encoding of the video file, by ffmpeg's libx264 or libx265.

    Attributes:
        crf: constant rate factor: lower is better and larger. 0 is read, because finished videos have it, and refused
            for new work: players do not play such a file.
        lossless: keeps every value of the yuv420p picture instead; ``crf`` does not count then. Browsers and QuickTime
            do not play such a file.
    """

    container: Annotated[Literal["mp4"], must("'mp4'")] = "mp4"
    codec: Annotated[Literal["h264", "h265"], must("'h264' or 'h265'")] = "h264"
    crf: Annotated[int, Field(ge=0, le=51), must("a whole number from 0 to 51")] = 18
    lossless: Annotated[bool, must("true or false")] = False


class PipelineSpec(Strict):
    """A whole pipeline file."""

    version: Version = Field(description="must be 1")
    model: ModelSpec = Field(description="a mapping with base, adapters and dtype")
    face: FaceSpec | None = None
    sampling: Sampling = Sampling()
    video: Video = Video()


DEMO_FACES = "demo:faces"
BUFFALO_L = "buffalo_l"
"""insightface's pack in insightface's own folder, ``~/.insightface/models/buffalo_l``."""
ARCFACE = "arcface_ir_se50"
"""facexlib's recognition_arcface_ir_se50.pth in lynx-parallel's cache folder."""
