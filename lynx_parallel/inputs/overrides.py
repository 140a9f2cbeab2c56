"""Reads the options ``--set`` and ``--only``."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from pydantic import ValidationError

from lynx_parallel.inputs.aliases import suggest
from lynx_parallel.inputs.manifest import Shot
from lynx_parallel.inputs.pipeline import Video
from lynx_parallel.inputs.problems import Problems, listing, near_names, nearest, shown_value
from lynx_parallel.inputs.sampling import Sampling, SamplingOverrides
from lynx_parallel.inputs.table import setting_value
from lynx_parallel.inputs.yaml_lines import read_scalar
from lynx_parallel.text import is_text

SETTABLE = (
    *(f"sampling.{name}" for name in Sampling.model_fields),
    *(f"video.{name}" for name in Video.model_fields),
    "output",
    "save_latents",
    "subjects",
)


@dataclass
class Forced:
    """The settings of ``--set``. ``output`` and ``subjects`` are relative to the working folder."""

    sampling: SamplingOverrides = field(default_factory=SamplingOverrides)
    video: dict[str, Any] = field(default_factory=dict)
    output: str | None = None
    save_latents: bool | None = None
    subjects: str | None = None


def read_overrides(overrides: Sequence[str], problems: Problems) -> Forced:
    """Parses ``key=value`` options; a key given twice takes the last value."""
    forced = Forced()
    sampling: dict[str, Any] = {}
    for option in overrides:
        key, equals, text = option.partition("=")
        section, _, name = key.partition(".")
        shown = f"--set {shown_value(option)[1:-1]}"
        if not equals:
            problems.option(f"{shown}: must be key=value, for example sampling.seed=7")
        elif not is_text(text):
            problems.option(f"{shown}: not UTF-8 text")
        elif key not in SETTABLE:
            problems.option(f"{shown}: unknown setting; {suggest(key, SETTABLE)}")
        elif key == "output":
            if text.strip():
                forced.output = text
            else:
                problems.option(f"{shown}: must be a folder")
        elif key == "subjects":
            if text.strip():
                forced.subjects = text
            else:
                problems.option(f"{shown}: must be a folder or a pattern of pictures")
        elif key == "save_latents":
            value = read_scalar(text)
            if isinstance(value, bool):
                forced.save_latents = value
            else:
                problems.option(f"{shown}: must be true or false")
        else:
            value = setting_value(name, text) if section == "sampling" else read_scalar(text)
            model = SamplingOverrides if section == "sampling" else Video
            try:
                model.model_validate({name: value})
            except ValidationError as invalid:
                problems.option(f"{shown}: {invalid.errors(include_url=False)[0]['msg']}")
            else:
                (sampling if section == "sampling" else forced.video)[name] = value
    forced.sampling = SamplingOverrides.model_validate(sampling)
    return forced


def select(shots: Sequence[Shot], only: Collection[str], problems: Problems) -> tuple[Shot, ...]:
    """Returns the shots whose ``subject/prompt`` or name fits a pattern. Each pattern must fit a shot."""
    if not only:
        return tuple(shots)
    pairs = [f"{shot.subject.id}/{shot.prompt.id}" for shot in shots]
    keep = fitting(pairs, [shot.name for shot in shots], only, problems)
    return tuple(shot for shot, kept in zip(shots, keep, strict=True) if kept)


def fitting(pairs: Sequence[str], names: Sequence[str], only: Collection[str], problems: Problems) -> list[bool]:
    """Returns which shots fit a pattern; all of them without a pattern. Each pattern must fit a shot.

    Args:
        pairs: ``subject/prompt`` of each shot.
        names: of the shots.
    """
    patterns = list(dict.fromkeys(only))
    keep = [not patterns] * len(names)
    for pattern in patterns:
        literal = pattern.replace("[", "[[]")  # a name may hold brackets, as in name: "[ACME] {subject}"
        fits = [
            fnmatchcase(pair, pattern) or fnmatchcase(name, pattern) or fnmatchcase(name, literal)
            for pair, name in zip(pairs, names, strict=True)
        ]
        if not any(fits):
            problems.option(f"--only {shown_value(pattern)}: fits no shot; {_near_pattern(pattern, pairs)}")
        keep = [a or b for a, b in zip(keep, fits, strict=True)]
    return keep


def _near_pattern(pattern: str, every: Iterable[str]) -> str:
    """Returns what a pattern without a shot may have meant: the nearest ids in place of unknown ones.

    Args:
        every: ``subject/prompt`` of each shot.
    """
    pairs = dict.fromkeys(every)
    subject, slash, prompt = pattern.partition("/")
    near = "/".join(
        one if re.search(r"[*?[]", one) else next(iter(near_names(one, known)), one)
        for one, known in (
            (subject, dict.fromkeys(pair.partition("/")[0] for pair in pairs)),
            (prompt, dict.fromkeys(pair.partition("/")[2] for pair in pairs)),
        )
    )
    if slash and any(fnmatchcase(pair, near) for pair in pairs):
        return f"did you mean {near!r}? ({listing(pairs, 'subject/prompt')})"
    return nearest(pattern, pairs, "subject/prompt")
