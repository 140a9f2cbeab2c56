"""The keys of a manifest."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from lynx_parallel.inputs.pipeline import Video
from lynx_parallel.inputs.quality import AuditionEntry, QualityEntry
from lynx_parallel.inputs.sampling import SamplingOverrides, Seed
from lynx_parallel.inputs.strict import Strict, Text, Version, must

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
ID_ALLOWED = "an id is a letter or digit, then up to 99 letters, digits, '.', '_' or '-' (ASCII)"
VAR = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}", re.ASCII)
DEFAULT_NAME = "{subject}/{prompt}-t{take:02}"


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _as_date(value: Any) -> Any:
    return date.fromisoformat(value) if isinstance(value, str) else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _by_number(value: Any) -> Any:
    """Returns a mapping with numbers for keys, which YAML files have as text here."""
    if not isinstance(value, dict):
        return value
    return {int(key) if isinstance(key, str) and key.isdecimal() else key: one for key, one in value.items()}


def _text_form(value: Any) -> Any:
    if value is None or isinstance(value, list):
        raise PydanticCustomError("must", "must be {allowed}", {"allowed": "text, {text: …} or {file: …}"})
    return value if isinstance(value, dict) else {"text": value}


Point = tuple[float, float]
Landmarks = Annotated[
    tuple[Point, Point, Point, Point, Point],
    BeforeValidator(_as_tuples),
    must("5 points [x, y] in pixels of the picture: eyes, nose, mouth corners"),
]
Face = Annotated[
    Literal["largest", "only"] | Annotated[int, Field(ge=1, le=1000)],
    must("'largest', 'only' or a number from 1, from the left"),
]
Faces = Annotated[
    Literal["private", "inherit"],
    must("'private' (only you can read the face crops) or 'inherit' (whoever can read the output folder)"),
]
Expires = Annotated[date, BeforeValidator(_as_date), must("a date such as 2027-01-31")]
LabelValue = Annotated[str | int | float | bool, must("text, a number, true or false")]
TakeNumber = Annotated[int, Field(ge=1, le=1_000_000)]
TakeCount = Annotated[int, Field(ge=1), must("a whole number from 1")]
Takes = Annotated[
    Annotated[int, Field(ge=1)] | Annotated[dict[TakeNumber, Seed], Field(min_length=1)],
    BeforeValidator(_by_number),
    must("a whole number from 1, or seeds by take, such as {1: 42, 3: 99}"),
]
Priority = Annotated[int, Field(ge=-(10**9), le=10**9), must("a whole number; higher comes first")]
Ids = Annotated[
    list[str],
    BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
    Field(min_length=1),
    must('an id, a list of ids, or "*" for all'),
]


Vars = dict[str, str]
Labels = dict[str, LabelValue]
StartImage = Annotated[
    Text | None, Field(description="Picture with which the video begins, for I2V bases; relative to this file.")
]
_OF_SAMPLING = "Settings that replace the pipeline's. Later ones win: campaign, subject, prompt, variant, shot."
_VARS = "Texts that replace {name} in prompts."
_LABELS = "Notes, which are passed through to the sidecar of each video."
_FACE = "Which face of the picture: the largest, the only one, or the n-th from the left."


class ConsentEntry(Strict):
    """Consent to render a face. It is copied to the sidecar."""

    ref: Text = Field(description="text that says where the consent is filed")
    scope: Text | None = Field(default=None, description="What the consent is for.")
    expires: Expires | None = Field(default=None, description="Day after which no shot of the subject is made.")


class SubjectEntry(Strict):
    """One person: an entry of ``subjects``."""

    image: Text | None = Field(default=None, description="Picture of the face, relative to this file.")
    embedding: Text | None = Field(
        default=None,
        description="ArcFace vector [512] of the face: .safetensors (key face_embedding) or .npy. Found in the "
        "picture if it is left out.",
    )
    landmarks: Landmarks | None = Field(
        default=None,
        description="Eyes (the left one in the picture first), nose and mouth corners. Found in the picture if they "
        "are left out.",
    )
    face: Face = Field(default="largest", description=_FACE)
    vars: Vars = Field(default_factory=dict, description=_VARS)
    sampling: SamplingOverrides = Field(default=SamplingOverrides(), description=_OF_SAMPLING)
    consent: ConsentEntry | None = Field(default=None, description="Consent to render this face.")
    labels: Labels = Field(default_factory=dict, description=_LABELS)
    start_image: StartImage = None


class PromptEntry(Strict):
    """One entry of ``prompts``: text, or ``{text: …}`` or ``{file: …}`` with settings of its own."""

    text: str | None = Field(
        default=None, description="The prompt. {name} and {name|default} are replaced by vars of the subject."
    )
    file: Text | None = Field(default=None, description="Text file with the prompt, relative to this file.")
    start_image: StartImage = None
    sampling: SamplingOverrides = Field(default=SamplingOverrides(), description=_OF_SAMPLING)

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return _text_form(value)

    @model_validator(mode="after")
    def _one_source(self) -> PromptEntry:
        if (self.text is None) == (self.file is None):
            raise PydanticCustomError("one_source", "give exactly one of text and file")
        return self


class ShotEntry(Strict):
    """One entry of ``shots``: subjects, prompts and takes."""

    subject: Ids = Field(description='a subject\'s id, a list of ids, or "*" for all')
    prompt: Ids = Field(description='a prompt\'s id, a list of ids, or "*" for all')
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = Field(
        default=None, description="Seeds of the takes 1, 2, 3 and so on."
    )
    takes: Takes | None = Field(
        default=None,
        description="Number of takes, with the seeds sampling.seed, sampling.seed + 1 and so on; or seeds by take.",
    )
    priority: Priority = Field(default=0, description="Place in the order of rendering.")
    audition: AuditionEntry | None = Field(
        default=None, description="Run all takes to an early step, and finish only the chosen ones."
    )
    start_image: StartImage = None
    sampling: SamplingOverrides = Field(default=SamplingOverrides(), description=_OF_SAMPLING)


class VariantEntry(Strict):
    """One entry of ``variants`` that is no sweep."""

    pipeline: Text | None = Field(
        default=None, description="Name of a shipped pipeline, or path of a pipeline file, in place of the campaign's."
    )
    sampling: SamplingOverrides = Field(default=SamplingOverrides(), description=_OF_SAMPLING)

    @model_validator(mode="before")
    @classmethod
    def _empty_form(cls, value: Any) -> Any:
        return {} if value is None else value


class TableEntry(Strict):
    """A table of shots: ``shots: {from: shots.csv}``."""

    from_: Text = Field(alias="from", description="a file name")


class SubjectsFrom(Strict):
    """Subjects of pictures or of a table. The other keys apply to all of them."""

    from_: Text = Field(alias="from", description="pictures such as faces/*.jpg, or a table such as people.csv")
    face: Face = Field(default="largest", description=_FACE)
    vars: Vars = Field(default_factory=dict, description=_VARS)
    sampling: SamplingOverrides = Field(default=SamplingOverrides(), description=_OF_SAMPLING)
    consent: ConsentEntry | None = Field(default=None, description="Consent to render these faces.")
    labels: Labels = Field(default_factory=dict, description=_LABELS)


class ManifestFile(Strict):
    """A manifest: subjects, prompts, and how they are rendered."""

    version: Version = Field(description="must be 1")
    pipeline: Text = Field(description="the name of a shipped pipeline, or the path of a pipeline file")
    output: Text = Field(description="the folder for the videos, relative to this file")
    sampling: SamplingOverrides = Field(default=SamplingOverrides(), description=_OF_SAMPLING)
    video: Video = Field(default=Video(), description="Encoding of the video file, in place of the pipeline's.")
    vars: Vars = Field(default_factory=dict, description=f"{_VARS} For subjects without a var of that name.")
    # Sections are read entry by entry, so that one mistake hides no other. ``schema`` knows what is in them.
    subjects: Any = Field(description="a mapping id: {image: …}, or {from: faces/*.jpg}")
    prompts: Any = Field(default=None, description="A mapping id: text, or id: {text: …} or {file: …}.")
    variants: Any = Field(
        default=None,
        description="Named changes of settings or pipeline: every shot is rendered once for each. A list of values "
        "sweeps a setting: {ip: {sampling.ip_scale: [0.6, 0.8]}}.",
    )
    shots: Any = Field(
        default=None,
        description="Which subjects are rendered with which prompts. By default, every subject with every prompt, one "
        "take.",
    )
    save_latents: bool = Field(
        default=True, description="Keep the latents of each video, to encode it again without rendering."
    )
    faces: Faces = Field(default="inherit", description="who can read the face crops in the output folder")
    takes: Text | None = Field(default=None, description="a file of takes, by lynx-render takes export")
    scorers: Any = Field(
        default=None,
        description="Other scorers for lynx-render score, by the name of their entry point, with options: "
        "{clip: {model: models/clip}}.",
    )
    quality: QualityEntry | None = Field(
        default=None, description="Score each video, and render it again with another seed if it is not good enough."
    )
    name: Text = Field(
        default=DEFAULT_NAME,
        description="Name of the files of a shot, with {subject}, {prompt}, {variant}, {take} and {seed}.",
    )
