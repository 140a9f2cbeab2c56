"""The site file: rules that the administrator of a machine sets for everyone who renders on it.

``/etc/lynx-parallel/site.yaml``; if that does not exist, the file that ``$LYNX_SITE`` names. So a user cannot replace
the administrator's rules. A site file that cannot be read stops the work. Imports neither torch nor Ray.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.content import content_digest
from lynx_parallel.inputs.problems import Problems, shown_value
from lynx_parallel.inputs.strict import Strict, Text, Version, must
from lynx_parallel.inputs.validate import read_model
from lynx_parallel.inputs.weight_names import resolve_file
from lynx_parallel.inputs.yaml_lines import Document, read_yaml
from lynx_parallel.text import shown_path

SITE_FILE = Path("/etc/lynx-parallel/site.yaml")
VARIABLE = "LYNX_SITE"
UNSAFE_LABELS = ("nsfw", "unsafe")
"""Labels that count as unsafe if the site file names none."""
CHECKER_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")


class SafetyEntry(Strict):
    """An image classifier that every video must pass."""

    checker: Text = Field(description="a folder with a local image classifier: config.json, preprocessor_config.json "
                          "and model.safetensors")  # fmt: skip
    threshold: Annotated[float, Field(gt=0, le=1), must("a number above 0, at most 1")] = Field(
        default=0.85, description="Score of an unsafe label from which a video is withheld."
    )
    labels: Annotated[list[Text], Field(min_length=1)] | None = Field(
        default=None, description="Unsafe labels of the classifier. By default nsfw and unsafe, whichever it has."
    )


class SiteFile(Strict):
    """A site file: rules for everyone who renders on a machine."""

    version: Version = Field(description="must be 1")
    consent: Annotated[Literal["required", "optional"], must("'required' or 'optional'")] = Field(
        default="optional", description="Whether subjects without consent are blocked."
    )
    licences: Annotated[Literal["commercial", "any"], must("'commercial' or 'any'")] = Field(
        default="any",
        description="commercial: refuse weights and face models whose licence does not allow commercial use.",
    )
    licence_of: dict[str, Text] = Field(
        default_factory=dict,
        description="Licences of weights by their name or path in pipeline files, where lynx-parallel does not know "
        "them.",
    )
    safety: SafetyEntry | None = Field(default=None, description="Image classifier that every video must pass.")


@dataclass(frozen=True)
class Safety:
    """The safety checker of a site.

    Attributes:
        folder: of the classifier.
        labels: that count as unsafe.
    """

    folder: Path
    threshold: float
    labels: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        """Digest of the classifier's files, the labels and the threshold. Reading the files may take a second.

        Raises:
            InputErrors: a file cannot be read.
        """
        files = [content_digest(self.folder / name) for name in CHECKER_FILES]
        return hashlib.sha256(json.dumps([files, sorted(self.labels), self.threshold]).encode()).hexdigest()


@dataclass(frozen=True)
class Site:
    """The rules of a site. Without a site file there are none.

    Attributes:
        path: of the site file; None without one.
        digest: sha256 of its content, for the sidecars; empty without one.
        licence_of: licences by source.
    """

    path: Path | None = None
    digest: str = ""
    consent_required: bool = False
    commercial: bool = False
    licence_of: Mapping[str, str] = field(default_factory=dict, hash=False)
    safety: Safety | None = None

    @property
    def shown(self) -> str:
        return "" if self.path is None else shown_path(self.path)

    def lacks_consent(self, consent: object) -> str:
        """Returns why a subject without consent is blocked, or an empty text.

        Args:
            consent: of the subject; None without any.
        """
        return f"no consent; {self.shown} requires it" if self.consent_required and consent is None else ""

    def __str__(self) -> str:
        """Returns the rules in words."""
        rules = [
            "consent required" if self.consent_required else "",
            "licences for commercial use" if self.commercial else "",
            f"safety checker {shown_path(self.safety.folder)}, threshold {self.safety.threshold:g}"
            if self.safety
            else "",
        ]
        return ", ".join(rule for rule in rules if rule) or "no rules"


def site_path() -> Path | None:
    """Returns the site file that holds here, or None. The one in ``/etc`` wins."""
    if os.path.lexists(SITE_FILE):
        return SITE_FILE
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser().absolute() if named else None


def load_site() -> Site:
    """Reads the site file that holds here.

    Raises:
        InputErrors: it is missing although ``$LYNX_SITE`` names it, cannot be read, or has mistakes.
    """
    path = site_path()
    if path is None:
        return Site()
    problems = Problems()
    document = read_yaml(path, problems)
    found = read_model(SiteFile, document, (), problems) if document else None
    safety = _safety(document, found.safety, problems) if document and found and found.safety else None
    problems.raise_if_any()
    assert found is not None
    return Site(
        path, hashlib.sha256(path.read_bytes()).hexdigest(), found.consent == "required",
        found.licences == "commercial", found.licence_of, safety,
    )  # fmt: skip


def _safety(document: Document, entry: SafetyEntry, problems: Problems) -> Safety | None:
    """Checks the classifier's files, and returns it with its unsafe labels. Loads nothing."""
    folder = resolve_file(document.file.parent, entry.checker)

    def blame(message: str, key: str = "checker") -> None:
        document.blame(problems, ("safety", key), message)

    shown = shown_value(entry.checker)
    if missing := [name for name in CHECKER_FILES if not (folder / name).is_file()]:
        blame(f"{shown}: {'no such folder' if not folder.is_dir() else f'has no {missing[0]}'}")
        return None
    if closed := [name for name in CHECKER_FILES if not os.access(folder / name, os.R_OK)]:
        blame(f"{shown}: {closed[0]} cannot be read")
        return None
    known = _labels_of(folder / "config.json")
    if not known:
        blame(f"{shown}: its config.json has no id2label: not an image classifier")
        return None
    wanted = entry.labels or [label for label in known if label.casefold() in UNSAFE_LABELS]
    if unknown := [label for label in wanted if label not in known]:
        blame(f"{shown_value(unknown[0])}: no label of the classifier (labels: {', '.join(known)})", "labels")
    elif not wanted:
        blame(f"{shown}: no label is called nsfw or unsafe: name the unsafe ones in labels ({', '.join(known)})")
    return None if unknown or not wanted else Safety(folder, entry.threshold, tuple(wanted))


def _labels_of(config: Path) -> list[str]:
    try:
        found: Any = json.loads(config.read_bytes())
        return [str(label) for label in found["id2label"].values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def refuse_calls() -> None:
    """Refuses the notebook's pipeline where a site has rules. Its calls name no consent, and nothing checks frames.

    Raises:
        InputErrors: the site has rules, or its file cannot be read.
    """
    site = load_site()
    if site.consent_required or site.commercial or site.safety is not None:
        raise InputErrors([f"{site.shown}: {site}: LynxPipeline cannot follow these rules; render with lynx-render"])
