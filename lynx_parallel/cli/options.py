"""Options that several commands share, and how they print."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from lynx_parallel.errors import InputErrors
from lynx_parallel.notices import Notice, notice_lines

Manifest = Annotated[str, typer.Argument(help="Manifest file, or the bare name of a shipped one (demo).")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: sampling.seed=7.")
]
Only = Annotated[list[str] | None, typer.Option("--only", metavar="PATTERN", help="Only these shots: 'ada/*'.")]
Verify = Annotated[bool, typer.Option("--verify", help="Read finished files whole instead of trusting size and mtime.")]
Strict = Annotated[bool, typer.Option("--strict", help="Treat warnings about the input as errors: exit 2.")]
Json = Annotated[bool, typer.Option("--json", help="End with a JSON summary on stdout; progress goes to stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


class Say:
    """Prints one line of progress at a time and flushes it, so that a pipe or a log shows it at once.

    If the line cannot be written (a reader such as ``| head`` has ended, the terminal is closed, a log's disk is full),
    only the line is lost.
    """

    def __init__(self, stream: Any):
        self.stream = stream

    def __call__(self, line: str) -> None:
        with contextlib.suppress(OSError):
            print(line, file=self.stream, flush=True)


def show_notices(notices: Iterable[Notice], strict: bool) -> None:
    """Prints warnings about the input to stderr, one line per kind.

    Raises:
        InputErrors: there is a warning, and ``--strict`` was given.
    """
    lines = notice_lines(notices)
    if strict and lines:
        raise InputErrors(lines)
    for line in lines:
        Say(sys.stderr)(line)
