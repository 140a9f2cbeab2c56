"""Finds the pipelines, manifests, schemas and pages of the documentation that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Kind = Literal["pipelines", "manifests", "schemas", "docs"]


def shipped_dir(kind: Kind) -> Path:
    """Returns the folder of the shipped files: inside the installed package, else in the checkout."""
    package = Path(__file__).resolve().parents[1]
    inside_wheel = package / "_shipped" / kind
    return inside_wheel if inside_wheel.is_dir() else package.parent / kind


def shipped_text(name: str) -> str:
    """Returns a page of the documentation that comes with the package, in Markdown."""
    return (shipped_dir("docs") / name).read_text(encoding="utf-8")


def shipped_names(kind: Kind) -> list[str]:
    """Returns the bare names of the shipped files, sorted: ``["demo-tiny", "lynx-full", …]``."""
    return sorted(path.stem for path in shipped_dir(kind).glob("*.yaml"))
