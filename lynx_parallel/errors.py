"""The tree of errors that are reported to the user: one line and one exit code each.

The command line prints ``str(error)`` and exits with ``error.exit_code``. Only ``--debug`` prints a traceback. Imports
neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, TypeVar

Result = TypeVar("Result")
Kind = Literal["subject", "died", "raised", "hung", "memory", "disk"]
"""Of a failed attempt: a subject that cannot be used; a rank that died, raised, hung, or ran out of memory; a full
disk."""


class LynxError(Exception):
    """Base of all errors that a user can act on. ``str(error)`` is one line, or several for InputErrors.

    Attributes:
        place: GPU or machine where it happened, as ``Hello.place``; empty for the driver, or if unknown.
        host: name of that machine.
    """

    exit_code = 1
    place = ""
    host = ""


class InputErrors(LynxError):
    """All mistakes in the user's files and options, found before any work.

    Attributes:
        lines: one self-contained line per mistake: ``file:line: path: value: what is allowed``.
    """

    exit_code = 2

    def __init__(self, lines: Iterable[str]):
        self.lines = list(lines)
        super().__init__("\n".join(self.lines))


def collect(calls: Iterable[Callable[[], Result]]) -> list[Result]:
    """Calls each and returns the results.

    Raises:
        InputErrors: the lines of all calls that raised one, each line once.
    """
    results: list[Result] = []
    lines: list[str] = []
    for call in calls:
        try:
            results.append(call())
        except InputErrors as error:
            lines += error.lines
    if lines:
        raise InputErrors(dict.fromkeys(lines))
    return results


class ClusterError(LynxError):
    """The machine, the cluster or an installed package cannot do the requested work (exit 3)."""

    exit_code = 3


class CheckpointError(LynxError):
    """A weights file does not fit. The message names file, key, expected and found value."""

    exit_code = 2


class SubjectError(LynxError):
    """One subject cannot be used. Only its own shots fail."""


class DamagedError(LynxError):
    """A file in the output folder holds other bytes than were written. It must be made again first."""


class RenderError(LynxError):
    """One shot failed while rendering. Other shots are not affected.

    Attributes:
        kind: of the failure: a rank ``raised``, ``died``, ``hung``, or ran out of ``memory``.
    """

    def __init__(self, message: str, kind: Kind = "raised"):
        super().__init__(message, kind)
        self.kind = kind

    def __str__(self) -> str:
        return str(self.args[0])


class Stopped(LynxError):
    """A shot was stopped on request after its resume state was saved."""

    exit_code = 75
