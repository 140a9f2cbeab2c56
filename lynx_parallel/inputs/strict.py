"""Base types of the specs that are read from files: strict models, texts, versions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, WrapValidator
from pydantic_core import PydanticCustomError


class Strict(BaseModel):
    """Base of all specs: frozen, no unknown keys, no conversions (but a whole number may be a float)."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


ALLOWED = "x-allowed"
"""Key of a JSON schema for what ``must`` allows, in words. ``schema`` moves it into the description."""


@dataclass(frozen=True, slots=True)
class Must(WrapValidator):
    """A validator that puts what it allows into the JSON schema, too.

    Attributes:
        allowed: in words, for messages and for the schema.
    """

    allowed: str = ""

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        return {**handler(core), ALLOWED: self.allowed}


def must(allowed: str) -> Must:
    """Returns a validator that reports any mistake as ``must be <allowed>``."""

    def check(value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except (ValidationError, OverflowError):
            raise mistake(allowed) from None

    return Must(check, allowed=allowed)


def mistake(allowed: str) -> PydanticCustomError:
    """Returns the error ``must be <allowed>``, for a validator to raise."""
    return PydanticCustomError("must", "must be {allowed}", {"allowed": allowed})


def _not_blank(text: str) -> str:
    if not text.strip():
        raise mistake("text that is not empty")
    return text


Text = Annotated[str, AfterValidator(_not_blank), WithJsonSchema({"type": "string", "pattern": r"\S"})]


Version = Annotated[int, Field(ge=1, le=1), must("1")]  # a Literal[1] would take True and 1.0
