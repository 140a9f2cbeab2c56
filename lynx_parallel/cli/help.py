"""lynx-render help CODE: explains an error. The end of an error's output names its code."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Annotated

import typer

from lynx_parallel.cli.options import Debug
from lynx_parallel.errors import InputErrors
from lynx_parallel.view.lines import Lines

PAGE = "troubleshooting.md"


def help(
    words: Annotated[
        list[str], typer.Argument(metavar="COMMAND|CODE...", help="A command, or codes of errors: LX101 LX302.")
    ],
    debug: Debug = False,
) -> None:
    """Show the help of a command, or explain errors by their codes.

    The end of an error's output names the code.

    Examples:
        lynx-render help LX101
        lynx-render help LX301 LX305
    """
    from lynx_parallel.inputs.problems import nearest

    sections = sections_of(_page())
    if wrong := [word for word in words if word.upper() not in sections]:
        allowed = list(sections)
        raise InputErrors(f"help {word}: no such command or code; {nearest(word, allowed, 'codes')}" for word in wrong)
    typer.echo("\n\n".join(f"{code}: {sections[code]}" for code in dict.fromkeys(map(str.upper, words))))


def show_help(codes: Iterable[str]) -> None:
    """Prints the line that says how to get help about errors, to stderr. Prints nothing without codes."""
    if named := " ".join(sorted({code for code in codes if code})):
        Lines(sys.stderr)(f"help: lynx-render help {named}")


def sections_of(page: str) -> dict[str, str]:
    """Returns the text of each code's section in ``docs/troubleshooting.md``.

    Args:
        page: content of the page.
    """
    sections = re.split(r"^### (LX\d+)$", page, flags=re.MULTILINE)
    texts = (re.split(r"^## ", text, flags=re.MULTILINE)[0].strip() for text in sections[2::2])
    return dict(zip(sections[1::2], texts, strict=True))


def _page() -> str:
    from lynx_parallel.inputs.shipped import shipped_text

    return shipped_text(PAGE)
