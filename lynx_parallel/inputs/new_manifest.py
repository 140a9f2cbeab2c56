"""Writes a commented manifest for a folder of pictures and a list of prompts."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.ids import first_words, free_id
from lynx_parallel.inputs.near_files import near_file
from lynx_parallel.inputs.notices import Notice
from lynx_parallel.inputs.picture_file import picture_mistake
from lynx_parallel.inputs.picture_patterns import is_picture
from lynx_parallel.inputs.problems import Problems
from lynx_parallel.inputs.schema import modeline
from lynx_parallel.inputs.sheet import Columns, is_table, read_sheet
from lynx_parallel.inputs.shipped import shipped_names
from lynx_parallel.inputs.template import template_mistake, unknown_vars
from lynx_parallel.inputs.text_files import Unreadable, read_text
from lynx_parallel.inputs.yaml_lines import read_scalar
from lynx_parallel.text import counted, is_text, shown_path

EXAMPLES = {
    "pumpkin": "A {person} carves a pumpkin on a porch in the evening.",
    "beach": "A {person} walks along a beach at sunrise, the wind in the hair.",
}
"""Prompts by id, for a manifest without a list of prompts."""
_COLUMNS = ("prompt", "prompt_text")


@dataclass
class Found:
    """Pictures or prompts by id.

    Attributes:
        notices: warnings about what was left out or renamed.
    """

    by_id: dict[str, str] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)

    def warn(self, kind: str, message: str, example: str) -> None:
        self.notices.append(Notice(kind, message, example))


def find_subjects(folder: Path, ignored: Iterable[Path] = ()) -> Found:
    """Returns the paths of the pictures in a folder, sorted by name. What cannot be used is a warning.

    Args:
        ignored: files that are no pictures, but are not worth a warning.

    Raises:
        InputErrors: no such folder, or it has no picture.
    """
    found, taken = Found(), set[str]()
    not_worth = {os.path.realpath(path) for path in ignored}
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except NotADirectoryError:
        raise InputErrors([f"{shown_path(folder)}: a file, not a folder of pictures"]) from None
    except OSError as error:
        raise InputErrors([f"{shown_path(folder)}: {error.strerror}{near_file(folder)}"]) from None
    for name in names:
        path = folder / name
        if path.is_dir() or os.path.realpath(path) in not_worth:
            continue
        if not is_picture(path):
            found.warn("not-a-picture", "files that are no pictures were left out", shown_path(path))
        elif not is_text(name):
            found.warn("name-not-text", "pictures whose names are not UTF-8 were left out", shown_path(path))
        elif mistake := picture_mistake(path):
            found.warn("picture-unreadable", "pictures that cannot be read were left out", str(mistake))
        else:
            id_ = free_id(path.stem, taken)
            if id_ != path.stem:
                message = "ids made from file names that are no valid ids, or are given twice"
                found.warn("id-made", message, f"{shown_path(path)} → {id_}")
            found.by_id[id_] = str(path)
    if not found.by_id:
        left = f"; {counted(len(found.notices), 'file')} left out: {found.notices[0].example}" if found.notices else ""
        raise InputErrors([f"{shown_path(folder)}: no picture in this folder{left}"])
    return found


def read_prompt_list(path: Path) -> Found:
    """Returns the prompts of a list: a text file with one per line, or a table with a column ``prompt``.

    A table may have the columns ``prompt_text`` for the text and ``prompt`` for the id, as a table of shots. Braces
    that are no ``{name}`` stay braces. A text that is given twice counts once.

    Raises:
        InputErrors: it cannot be read, or has no prompt.
    """
    if path.suffix.lower() == ".txt" or not is_table(path.name):
        try:
            rows = [("", line.strip()) for line in read_text(path).splitlines()]
        except Unreadable as error:
            line = f":{error.line}" if error.line else ""
            near = near_file(path) if error.reason == "missing file" else ""
            raise InputErrors([f"--prompts {shown_path(path)}{line}: {error.reason}{near}"]) from None
    else:
        rows = _of_table(path)
    found, taken = Found(), set[str]()
    for name, text in rows:
        if not text:
            continue
        if template_mistake(text):
            text = text.replace("{", "{{").replace("}", "}}")
            message = "braces in prompts are doubled, because they name no var"
            found.warn("braces", message, text if len(text) < 60 else f"{text[:60]}…")
        if text not in found.by_id.values():
            found.by_id[free_id(name or first_words(text) or "prompt", taken)] = text
    if not found.by_id:
        raise InputErrors([f"--prompts {shown_path(path)}: holds no prompt"])
    return found


def _of_table(path: Path) -> list[tuple[str, str]]:
    """Returns id and text of each row; an id may be empty."""
    problems = Problems()
    columns = Columns(
        known=lambda name: name in _COLUMNS,
        allowed=lambda name: list(_COLUMNS),
        missing=lambda names: [] if {*_COLUMNS} & {*names} else ["prompt"],
    )
    rows = [row for _, row in read_sheet(path, columns, problems).rows]
    problems.raise_if_any()
    if any("prompt_text" in row for row in rows):
        return [(row.get("prompt", "").strip(), row.get("prompt_text", "").strip()) for row in rows]
    return [("", row["prompt"].strip()) for row in rows]


def manifest_text(
    folder: Path, *, pipeline: str, output: str, subjects: Mapping[str, str], prompts: Mapping[str, str]
) -> str:
    """Returns the content of a manifest, with comments for a newcomer.

    Args:
        folder: of the manifest.
        pipeline: as the manifest names it.
        output: as the manifest names it.
        subjects: paths of pictures by id, relative to the working folder.
        prompts: valid templates by id.
    """
    names = dict.fromkeys(name for text in prompts.values() for name in unknown_vars(text, {}))
    filled = [f"  {name}: {yaml_text(name.replace('_', ' '))}" for name in names]
    pictures = {id_: relative(path, folder) for id_, path in subjects.items()}
    example = next(iter(subjects))
    others = [name for name in shipped_names("pipelines") if name != pipeline]
    lines = [
        modeline("manifest"),
        "# Every subject is rendered with every prompt. Paths are relative to this file.",
        "# All keys: lynx-render schema manifest, or an editor that reads the line above.",
        "version: 1",
        "",
        *textwrap.wrap(
            f"Also shipped: {', '.join(others)}. Or the path of a pipeline file of your own.",
            100,
            initial_indent="# ",
            subsequent_indent="# ",
            break_on_hyphens=False,
        ),
        f"pipeline: {yaml_text(pipeline)}",
        "",
        "# Folder for the videos.",
        f"output: {yaml_text(output)}",
        "",
        "# Settings that replace the pipeline's, such as num_frames, num_inference_steps or ip_scale.",
        "sampling:",
        "  seed: 42                # another seed gives another video",
        "",
        *(_commented_vars(filled, example) if filled else ()),
        "subjects:",
        *(f"  {yaml_text(id_)}: {{image: {yaml_text(path)}}}" for id_, path in pictures.items()),
        "",
        "# {name} in a text stands for a var, {name|default} gives a default, {{ and }} are braces.",
        "prompts:",
        *(f"  {yaml_text(id_)}: {yaml_text(text)}" for id_, text in prompts.items()),
        "",
        "# Takes: more than one video of a subject and a prompt. By default, one.",
        "# shots:",
        '#   - {subject: "*", prompt: "*", takes: 3}    # seeds 42, 43 and 44',
        "",
        "# Variants: every shot once for each, to compare settings.",
        "# variants:",
        "#   plain: {}",
        "#   strength: {sampling.ip_scale: [0.8, 1.2]}",
    ]
    return "\n".join(lines) + "\n"


def _commented_vars(filled: Sequence[str], example: str) -> list[str]:
    """Returns the section ``vars`` with its comments."""
    return [
        "# Texts for {name} in the prompts. A subject's own win:",
        f"#   {yaml_text(example)}: {{image: …, vars: {{{filled[0].strip()}}}}}",
        "vars:",
        *filled,
        "",
    ]


def relative(path: Path | str, folder: Path) -> str:
    """Returns a path as a file in ``folder`` names it: always text in YAML, and never a home folder."""
    text = os.path.relpath(path, folder)
    if os.path.realpath(os.path.join(folder, text)) != os.path.realpath(path):  # .. leads out of a linked folder
        text = os.path.relpath(os.path.realpath(path), os.path.realpath(folder))
    return text if isinstance(read_scalar(text), str) and not text.startswith("~") else f"./{text}"


def yaml_text(text: str) -> str:
    """Returns a text as a YAML scalar on one line, in quotes where it needs them, also within ``{…}``."""
    plain = text.isprintable() and isinstance(read_scalar(text), str)
    style = None if plain else '"'
    dumped = yaml.safe_dump(
        [text], default_flow_style=True, default_style=style, allow_unicode=True, width=float("inf")
    )
    return str(dumped).strip()[1:-1]
