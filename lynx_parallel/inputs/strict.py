"""Base types of the specs that are read from files: strict models, texts, versions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WrapValidator
from pydantic_core import PydanticCustomError


class Strict(BaseModel):
    """Base of all specs: frozen, no unknown keys, no conversions (but a whole number may be a float)."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


def must(allowed: str) -> WrapValidator:
    """Returns a validator that reports any mistake as ``must be <allowed>``."""

    def check(value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except (ValidationError, OverflowError):
            raise mistake(allowed) from None

    return WrapValidator(check)


def mistake(allowed: str) -> PydanticCustomError:
    """Returns the error ``must be <allowed>``, for a validator to raise."""
    return PydanticCustomError("must", "must be {allowed}", {"allowed": allowed})


def _not_blank(text: str) -> str:
    if not text.strip():
        raise mistake("text that is not empty")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]


Version = Annotated[int, Field(ge=1, le=1), must("1")]  # a Literal[1] would take True and 1.0
