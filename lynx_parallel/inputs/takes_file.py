"""Reads the file of takes that a manifest names, as ``lynx-render takes export`` writes it, and that of the output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.near_files import file_mistake
from lynx_parallel.inputs.problems import Problems, shown_value
from lynx_parallel.inputs.sampling import Seed
from lynx_parallel.inputs.sources import is_file
from lynx_parallel.inputs.strict import Strict, Text, Version, must
from lynx_parallel.inputs.validate import read_model
from lynx_parallel.inputs.weight_names import resolve_file
from lynx_parallel.inputs.yaml_lines import Document, read_yaml
from lynx_parallel.output.folder import Output
from lynx_parallel.output.takes import Takes, read_takes, take_of

State = Annotated[Literal["", "accepted", "rejected"], must("'accepted' or 'rejected'")]
Number = Annotated[int, Field(ge=1), must("a whole number from 1")]


class PastEntry(Strict):
    """An earlier seed of a take."""

    seed: Seed = Field(description="the seed that the take had")
    state: State = Field(default="", description="What was decided about it.")
    time: str = Field(default="", description="When it was decided.")


class TakeEntry(Strict):
    """One take of a file of takes."""

    subject: Text = Field(description="id of the subject")
    prompt: Text = Field(description="id of the prompt")
    take: Number = Field(description="number of the take")
    seed: Seed = Field(description="seed of the take")
    variant: str = Field(default="", description="Id of the variant; empty without variants.")
    state: State = Field(default="", description="What was decided about the take.")
    time: str = Field(default="", description="When it was decided.")
    instead_of: Seed | None = Field(default=None, description="Seed that the manifest gave before.")
    history: list[PastEntry] = Field(default_factory=list, description="Earlier seeds, oldest first.")


class TakesFile(Strict):
    """A file of takes, by ``lynx-render takes export``."""

    version: Version = Field(description="must be 1")
    takes: list[TakeEntry] = Field(description="a list of takes")


def read_all_takes(document: Document, problems: Problems, output: Path) -> Takes:
    """Returns the takes of the output folder and of the file that the manifest names. The later change wins.

    Args:
        output: the campaign's output folder.
    """
    named = _named(document, problems)
    try:
        return read_takes(Output(output).takes).later_of(named)
    except InputErrors as error:
        for line in error.lines:
            problems.option(line)
        return named


def _named(document: Document, problems: Problems) -> Takes:
    text = document.data.get("takes")
    if not isinstance(text, str):
        return Takes()  # missing, or read_model has said so
    path = resolve_file(document.file.parent, text)
    if not is_file(path):
        document.blame(problems, ("takes",), f"{shown_value(text)}: {file_mistake(path)}")
        return Takes()
    found = read_yaml(path, problems)
    file = read_model(TakesFile, found, (), problems) if found else None
    if file is None:
        return Takes()
    return Takes(take_of(entry.model_dump()) for entry in file.takes)


def takes_as_yaml(takes: Takes) -> str:
    """Returns the content of a file of takes that a manifest can name: one line for each take, sorted."""
    lines = ["# Takes by lynx-render takes export. Name this file in a manifest: takes: FILE", "version: 1"]
    rows = [f"- {json.dumps(takes[key].as_json(), ensure_ascii=False)}" for key in sorted(takes)]
    return "\n".join([*lines, "takes:", *rows] if rows else [*lines, "takes: []"]) + "\n"
