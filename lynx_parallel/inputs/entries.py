"""The keys of a manifest."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from lynx_parallel.inputs.pipeline import Video
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
    BeforeValidator(_as_list),
    Field(min_length=1),
    must('an id, a list of ids, or "*" for all'),
]


StartImage = Annotated[Text | None, Field(description="picture with which the video begins, for I2V bases")]


class ConsentEntry(Strict):
    """``consent:`` of a subject."""

    ref: Text = Field(description="text that says where the consent is filed")
    scope: Text | None = None
    expires: Expires | None = None


class SubjectEntry(Strict):
    """One entry of ``subjects``."""

    image: Text | None = None
    embedding: Text | None = None
    landmarks: Landmarks | None = None
    face: Face = "largest"
    vars: dict[str, str] = Field(default_factory=dict)
    sampling: SamplingOverrides = SamplingOverrides()
    consent: ConsentEntry | None = None
    labels: dict[str, LabelValue] = Field(default_factory=dict)
    start_image: StartImage = None


class PromptEntry(Strict):
    """One entry of ``prompts``: text, or ``{text: …}`` or ``{file: …}`` with settings of its own."""

    text: str | None = None
    file: Text | None = None
    start_image: StartImage = None
    sampling: SamplingOverrides = SamplingOverrides()

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
    """One entry of ``shots``."""

    subject: Ids = Field(description='a subject\'s id, a list of ids, or "*" for all')
    prompt: Ids = Field(description='a prompt\'s id, a list of ids, or "*" for all')
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = None
    takes: Takes | None = None
    priority: Priority = 0
    start_image: StartImage = None
    sampling: SamplingOverrides = SamplingOverrides()


class VariantEntry(Strict):
    """One entry of ``variants`` that is no sweep."""

    pipeline: Text | None = None
    sampling: SamplingOverrides = SamplingOverrides()

    @model_validator(mode="before")
    @classmethod
    def _empty_form(cls, value: Any) -> Any:
        return {} if value is None else value


class TableEntry(Strict):
    """``shots: {from: shots.csv}``."""

    from_: Text = Field(alias="from", description="a file name")


class SubjectsFrom(Strict):
    """``subjects: {from: faces/*.jpg}`` or ``{from: people.csv}``. The other keys apply to all of its subjects."""

    from_: Text = Field(alias="from", description="pictures such as faces/*.jpg, or a table such as people.csv")
    face: Face = "largest"
    vars: dict[str, str] = Field(default_factory=dict)
    sampling: SamplingOverrides = SamplingOverrides()
    consent: ConsentEntry | None = None
    labels: dict[str, LabelValue] = Field(default_factory=dict)


def _ref(model: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{model}"}


_FROM = {
    "type": "object",
    "properties": {"from": {"type": "string"}},
    "required": ["from"],
    "additionalProperties": False,
}
_IDS = {"pattern": f"^{ID.pattern}$"}
# Sections are read entry by entry, so that one mistake hides no other: their types matter to the schema only.
Subjects = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "object", "propertyNames": _IDS, "additionalProperties": _ref("SubjectEntry")},
                _ref("SubjectsFrom"),
            ]
        }
    ),
]
Prompts = Annotated[
    Any,
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": _IDS,
            "additionalProperties": {"anyOf": [{"type": "string"}, _ref("PromptEntry")]},
        }
    ),
]
Variants = Annotated[
    Any,
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": _IDS,
            "additionalProperties": {
                "anyOf": [
                    _ref("VariantEntry"),
                    {
                        "type": "object",
                        "properties": {"pipeline": {"type": "string"}},
                        "patternProperties": {"^sampling\\.": {"type": "array", "minItems": 1}},
                    },
                ]
            },
        }
    ),
]
Shots = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "array", "items": _ref("ShotEntry"), "minItems": 1}, _FROM]})]


class ManifestFile(Strict):
    """The manifest's top level."""

    version: Version = Field(description="must be 1")
    pipeline: Text = Field(description="the name of a shipped pipeline, or the path of a pipeline file")
    output: Text = Field(description="the folder for the videos, relative to this file")
    sampling: SamplingOverrides = SamplingOverrides()
    video: Video = Video()
    vars: dict[str, str] = Field(default_factory=dict)
    subjects: Subjects = Field(description="a mapping id: {image: …}, or {from: faces/*.jpg}")
    prompts: Prompts = None
    variants: Variants = None
    shots: Shots = None
    save_latents: bool = True
    faces: Faces = Field(default="inherit", description="who can read the face crops in the output folder")
    takes: Text | None = Field(default=None, description="a file of takes, by lynx-render takes export")
    name: Text = DEFAULT_NAME
