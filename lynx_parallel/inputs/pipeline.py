"""The pipeline file: everything that changes pixels except the shot itself."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from lynx_parallel.inputs.sampling import Sampling, as_tuple
from lynx_parallel.inputs.strict import Strict, Text, Version, must
from lynx_parallel.inputs.weight_files import Expert

VaeDtype = Annotated[Literal["float32", "tf32", "bfloat16"], must("'float32', 'tf32' or 'bfloat16'")]


ExpertName = Annotated[Expert, must("'high_noise' or 'low_noise'")]


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
    """The Lynx weights; without ``ref`` (lite) no picture of the subject is needed.

    Attributes:
        resampler, id: both or neither. Bases that see a CLIP embedding of the first frame (Wan2.1 I2V) take no ID.
    """

    resampler: Adapter | None = Field(default=None, description="a file, hub:org/repo/path or demo:name")
    id: Adapter | None = Field(default=None, description="a file, hub:org/repo/path or demo:name")
    ref: Adapter | None = None

    @model_validator(mode="after")
    def _whole(self) -> Adapters:
        if (self.resampler is None) != (self.id is None):
            raise PydanticCustomError("one_source", "give both resampler and id, or neither")
        if self.id is None and self.ref is None:
            raise PydanticCustomError("one_source", "give resampler and id, ref, or all three")
        return self


class LoraSpec(AdapterFile):
    """A LoRA and its strength.

    Attributes:
        weight: factor of its change; may be negative.
        expert: the only expert that it changes, ``high_noise`` or ``low_noise``, where the base has two; by default
            both.
    """

    weight: Annotated[float, Field(ge=-100, le=100), must("a number from -100 to 100")] = 1.0
    expert: ExpertName | None = None


Lora = Annotated[LoraSpec, BeforeValidator(_short_form)]


class ModelSpec(Strict):
    """Weights and their precision.

    Attributes:
        base: a hub id ``org/name[@revision]``, an absolute folder or ``demo:name``.
        transformer: a single file that replaces the base's transformer: with Wan's or diffusers' names, in fp32, fp16,
            bf16 or fp8, plain or scaled. It is dequantised when it is loaded. All else comes from the base. Where the
            base has two experts, that of high noise.
        transformer_2: the same for the expert of low noise.
        loras: added to the transformer's weights when these are loaded, in this order.
        adapters_expert: the only expert with adapters, ``high_noise`` or ``low_noise``, where the base has two; by
            default both.
        loras_on_reference: whether the reference pass runs with the LoRAs. Published implementations disagree.
        dtype: of the transformer, the resampler and the text encoder.
        vae_dtype: precision of the VAE. ``float32`` is true fp32. ``tf32`` has fp32 weights and computes convolutions
            in TF32, on CUDA only. ``tf32`` and ``bfloat16`` lose detail. ``tf32`` decodes 3.6 times as
            fast on an H200; ``bfloat16`` is not measured.
    """

    base: Text = Field(description="a hub id org/name[@revision], a folder or demo:tiny")
    adapters: Adapters = Field(description="a mapping with resampler, id and, if wanted, ref")
    transformer: Adapter | None = None
    transformer_2: Adapter | None = None
    adapters_expert: ExpertName | None = None
    loras: Annotated[tuple[Lora, ...], BeforeValidator(as_tuple)] = Field(
        default=(), description="a list of files, or of mappings with file and weight"
    )
    loras_on_reference: Annotated[bool, must("true or false")] = True
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
