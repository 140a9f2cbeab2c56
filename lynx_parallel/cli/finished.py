"""Options and output that export, each and encode share: which finished shots, and where their files go."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lynx_parallel.cli.help_text import OUTPUT, SHOTS
from lynx_parallel.cli.target import Target
from lynx_parallel.errors import InputErrors
from lynx_parallel.text import counted, shown_path
from lynx_parallel.view.lines import Lines

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lynx_parallel.inputs.finished import Selection
    from lynx_parallel.output.made_files import MadeFiles, Source

Picked = Annotated[bool, typer.Option("--picked", help="Only takes that a review accepted.", rich_help_panel=SHOTS)]
Replace = Annotated[
    bool,
    typer.Option(
        "--replace",
        help="Replace files that this command made with another COMMAND or settings.",
        rich_help_panel=OUTPUT,
    ),
]
JsonAtEnd = Annotated[
    bool,
    typer.Option("--json", help="End with a JSON summary on stdout; lines go to stderr.", rich_help_panel=OUTPUT),
]
MOST_LINES = 10
"""Shots that are left out and get a line each. Further ones are counted."""


def lines_of(as_json: bool) -> Lines:
    return Lines(sys.stderr if as_json else sys.stdout)


def select(target: Target, only: list[str] | None, picked: bool, say: Lines) -> Selection:
    """Returns the finished shots that were asked for, and says what is left out.

    Raises:
        InputErrors: mistakes in the manifest, or a pattern that fits no shot.
    """
    from lynx_parallel.inputs.finished import select_finished

    whole = target.manifest is not None
    selection = select_finished(target.output, target.campaign, whole=whole, only=only or (), picked=picked)
    for name, reason in list(selection.left_out.items())[:MOST_LINES]:
        say(f"{name}: left out: {reason}")
    if (more := len(selection.left_out) - MOST_LINES) > 0:
        say(f"and {more} more are left out")
    if selection.unfinished:
        are = "is" if selection.unfinished == 1 else "are"
        say(f"{selection.unfinished} of {counted(selection.total, 'shot')} {are} not finished")
    if not selection.shots:
        hint = "; pick in report.html, then render with --review review.csv" if selection.unpicked else ""
        say(f"{target.shown}: no finished shot{' is picked' if picked else ''}{hint}")
    return selection


def folder_of(option: str | None, target: Target, ending: str = "") -> Path:
    """Returns where a command writes: the folder of ``--to``, else one beside the output folder.

    Args:
        ending: of the name of the folder beside the output folder.

    Raises:
        InputErrors: the folder is the output folder, or inside.
    """
    output = Path(os.path.realpath(target.output.folder))
    folder = output.with_name(f"{output.name}-{ending}") if option is None else Path(os.path.realpath(option))
    if folder.is_relative_to(output):
        raise InputErrors([f"--to {option}: is the output folder, or inside; choose a folder outside"])
    return folder


def split_by_state(made: MadeFiles, sources: Mapping[str, Source], *, replace: bool) -> tuple[list[str], list[str]]:
    """Returns the files that are left to make, and those that are done.

    Raises:
        InputErrors: files that would be replaced and must not be, one line each.
    """
    states = {file: made.state(file, source) for file, source in sources.items()}
    lines = [
        f"{shown_path(made.path(file))}: exists, and was not made by this command or was changed since; it is kept"
        for file, state in states.items()
        if state == "foreign"
    ]
    others = [file for file, state in states.items() if state == "other"]
    if others and not replace:
        lines.append(
            f"{shown_path(made.folder)}: {counted(len(others), 'file')} made with another command or other settings, "
            f"such as {others[0]}; add --replace, or choose another --to"
        )
    if lines:
        raise InputErrors(lines)
    return [file for file in states if states[file] != "done"], [file for file in states if states[file] == "done"]
