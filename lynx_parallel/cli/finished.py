"""Options and output that export, each and encode share: which finished shots, and where their files go."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, Protocol, TypeVar

import typer

from lynx_parallel.cli.help_text import OUTPUT, SHOTS
from lynx_parallel.cli.target import Target
from lynx_parallel.errors import InputErrors
from lynx_parallel.text import counted, in_words, shown_path
from lynx_parallel.view.lines import Lines

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lynx_parallel.engine.crew import Crew
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
T = TypeVar("T", bound="Task")
Faults = dict[str, str]
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


class Task(Protocol):
    """A file to make. ``name`` is that of its shot."""

    @property
    def name(self) -> str: ...

    @property
    def file(self) -> str: ...


def make_all(
    crew: Crew, made: MadeFiles, tasks: Sequence[T], make: Callable[[T, str | None], str], say: Lines
) -> Faults:
    """Makes files, one at each place of a crew at the same time, and says how each ended.

    Args:
        make: makes a file at a place, in a thread. Returns why it failed, or nothing. An OSError is a failure.

    Returns:
        Why shots failed, by name.
    """

    def timed(task: T, place: str | None) -> tuple[str, float]:
        began = time.monotonic()
        try:
            fault = make(task, place)
        except OSError as error:
            fault = in_words(error)
        return fault, time.monotonic() - began

    failed: Faults = {}
    for number, (task, (fault, seconds)) in enumerate(crew.work(tasks, timed), start=1):
        if fault:
            failed[task.name] = fault
            say(f"[{number}/{len(tasks)}] {task.name}: failed: {fault}")
        else:
            say(f"[{number}/{len(tasks)}] made in {seconds:.1f} s: {shown_path(made.path(task.file))}")
    return failed


def end_making(
    made: MadeFiles,
    selection: Selection,
    tasks: Sequence[Task],
    done: Sequence[str],
    failed: Faults,
    say: Lines,
    *,
    as_json: bool,
) -> NoReturn:
    """Prints the counts, or JSON, and ends the command: with 1 if a shot failed, or if there was none.

    Args:
        tasks: files that were to be made.
        done: files that were made before.
        failed: why shots failed, by name; also of shots without a task.

    Raises:
        Exit: always.
    """
    exit_code = int(bool(failed) or not selection.shots)
    written = [task.file for task in tasks if task.name not in failed]
    if selection.shots:
        bad = f", {len(failed)} failed" if failed else ""
        say(f"{shown_path(made.folder)}: {len(written)} made, {len(done)} already done{bad}")
    if as_json:
        result = {
            "to": str(made.folder), "made": written, "done": list(done), "failed": failed,
            "left_out": dict(selection.left_out), "unfinished": selection.unfinished, "exit_code": exit_code,
        }  # fmt: skip
        typer.echo(json.dumps(result))
    raise typer.Exit(exit_code)
