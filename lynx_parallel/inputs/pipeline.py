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
    """The place of an adapter's weights: a path, ``hub:org/repo[@revision]/path`` or ``demo:name``."""

    file: Text = Field(description="a file, hub:org/repo/path or demo:name")
    license: Text | None = Field(default=None, description="Licence of the file, for plan and the sidecar.")

    def __str__(self) -> str:
        return self.file


def _short_form(value: Any) -> Any:
    return {"file": value} if isinstance(value, str) else value


Adapter = Annotated[AdapterFile, BeforeValidator(_short_form, json_schema_input_type=Text | AdapterFile)]


class Adapters(Strict):
    """The Lynx weights; without ``ref`` (lite) no picture of the subject is needed."""

    resampler: Adapter | None = Field(
        default=None,
        description="Makes tokens of the face vector: a file, hub:org/repo/path or demo:name. Goes with id.",
    )
    id: Adapter | None = Field(
        default=None,
        description="Who it is: a file, hub:org/repo/path or demo:name. Goes with resampler. Bases that see a CLIP "
        "embedding of the first frame (Wan2.1 I2V) take no ID.",
    )
    ref: Adapter | None = Field(
        default=None, description="What the person looks like: a file, hub:org/repo/path or demo:name."
    )

    @model_validator(mode="after")
    def _whole(self) -> Adapters:
        if (self.resampler is None) != (self.id is None):
            raise PydanticCustomError("one_source", "give both resampler and id, or neither")
        if self.id is None and self.ref is None:
            raise PydanticCustomError("one_source", "give resampler and id, ref, or all three")
        return self


class LoraSpec(AdapterFile):
    """A LoRA and its strength."""

    weight: Annotated[float, Field(ge=-100, le=100), must("a number from -100 to 100")] = Field(
        default=1.0, description="Factor of its change; may be negative."
    )
    expert: ExpertName | None = Field(
        default=None, description="The only expert that it changes, where the base has two; by default both."
    )


Lora = Annotated[LoraSpec, BeforeValidator(_short_form, json_schema_input_type=Text | LoraSpec)]


class ModelSpec(Strict):
    """Weights and their precision."""

    base: Text = Field(description="a hub id org/name[@revision], a folder or demo:tiny")
    adapters: Adapters = Field(description="a mapping with resampler, id and, if wanted, ref")
    transformer: Adapter | None = Field(
        default=None,
        description="A single file that replaces the base's transformer: with Wan's or diffusers' names, in fp32, "
        "fp16, bf16 or fp8, plain or scaled. It is dequantised when it is loaded. All else comes from the base. Where "
        "the base has two experts, that of high noise.",
    )
    transformer_2: Adapter | None = Field(
        default=None, description="The same as transformer for the expert of low noise."
    )
    adapters_expert: ExpertName | None = Field(
        default=None, description="The only expert with adapters, where the base has two; by default both."
    )
    loras: Annotated[tuple[Lora, ...], BeforeValidator(as_tuple)] = Field(
        default=(),
        description="Files, or mappings with file and weight. They are added to the transformer's weights when these "
        "are loaded, in this order.",
    )
    loras_on_reference: Annotated[bool, must("true or false")] = Field(
        default=True,
        description="Whether the reference pass runs with the LoRAs. Published implementations disagree.",
    )
    dtype: Annotated[Literal["bfloat16", "float32", "float16"], must("'bfloat16', 'float32' or 'float16'")] = Field(
        default="bfloat16", description="Type of the transformer, the resampler and the text encoder."
    )
    vae_dtype: VaeDtype = Field(
        default="float32",
        description="Precision of the VAE. float32 is true fp32. tf32 has fp32 weights and computes convolutions in "
        "TF32, on CUDA only; it decodes 3.6 times as fast on an H200. bfloat16 is not measured. tf32 and bfloat16 "
        "lose detail.",
    )


class FaceSpec(Strict):
    """Models that find and recognise the face of subjects without given landmarks or embedding."""

    detector: Text = Field(
        description="an insightface pack (a folder, or buffalo_l under ~/.insightface/models), a YuNet .onnx file or "
        "demo:faces"
    )
    recognizer: Text = Field(
        description="IR-SE50 ArcFace: recognition_arcface_ir_se50.pth or .safetensors, arcface_ir_se50 for facexlib's "
        "in the cache folder, or demo:faces"
    )
    recognizer_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$"), must("64 hexadecimal digits")] | None = Field(
        default=None, description="Digest of another recognizer than facexlib's, on purpose."
    )
    det_size: Annotated[int, Field(ge=64, le=2048, multiple_of=32), must("a multiple of 32 from 64 to 2048")] = Field(
        default=640, description="Side of the square that the detector sees, in pixels."
    )
    rgb_quirk: bool = Field(default=True, description="Pass RGB to insightface, which expects BGR, as upstream does.")


class Video(Strict):
    """Encoding of the video file, by ffmpeg's libx264 or libx265."""

    container: Annotated[Literal["mp4"], must("'mp4'")] = Field(default="mp4", description="Format of the file.")
    codec: Annotated[Literal["h264", "h265"], must("'h264' or 'h265'")] = Field(
        default="h264", description="h264 plays everywhere; h265 makes smaller files."
    )
    # 0 is read, because finished videos have it, and refused for new work.
    crf: Annotated[int, Field(ge=0, le=51), must("a whole number from 0 to 51")] = Field(
        default=18,
        description="Constant rate factor: lower is better and larger. 0 is refused for new videos, because players "
        "do not play them.",
    )
    metadata: Annotated[Literal["minimal", "full"], must("'minimal' or 'full'")] = Field(
        default="minimal",
        description="What the file says of itself. minimal: that a trained model made it (IPTC), and the digest of "
        "its settings. full: the prompt and the seed, too.",
    )
    lossless: Annotated[bool, must("true or false")] = Field(
        default=False,
        description="Keep every value of the yuv420p picture; crf does not count then. Browsers and QuickTime do not "
        "play such a file.",
    )


class PipelineSpec(Strict):
    """A pipeline file: everything that changes pixels, except the shot itself."""

    version: Version = Field(description="must be 1")
    model: ModelSpec = Field(description="a mapping with base, adapters and dtype")
    face: FaceSpec | None = Field(
        default=None,
        description="Models that find and recognise faces; not needed where each subject has landmarks and embedding.",
    )
    sampling: Sampling = Field(default=Sampling(), description="Settings of a render. A manifest may change them.")
    video: Video = Field(default=Video(), description="Encoding of the video file. A manifest may change it.")


DEMO_FACES = "demo:faces"
BUFFALO_L = "buffalo_l"
"""insightface's pack in insightface's own folder, ``~/.insightface/models/buffalo_l``."""
ARCFACE = "arcface_ir_se50"
"""facexlib's recognition_arcface_ir_se50.pth in lynx-parallel's cache folder."""
