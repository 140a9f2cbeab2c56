"""Every error a user can meet: one tree, one line each, one exit code each.

The command line prints ``str(error)`` and leaves with ``error.exit_code``; a traceback appears only
under ``--debug``. Nothing here imports torch or Ray.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Kind = Literal["subject", "died", "raised", "hung", "memory", "disk"]
"""Of a failed attempt: a subject that cannot be used; a rank that died, raised, hung, or ran out of memory; a full
disk."""


class LynxError(Exception):
    """Base of all errors a user can act on. ``str(error)`` is one line (several for InputErrors).

    Attributes:
        place: where it happened, as ``Hello.place``; empty for the driver, or if unknown.
        host: name of that machine.
    """

    exit_code = 1
    place = ""
    host = ""


class InputErrors(LynxError):
    """Everything wrong with the user's files and options, found before any work.

    Attributes:
        lines: one self-contained line per mistake: ``file:line: path: value: what is allowed``.
    """

    exit_code = 2

    def __init__(self, lines: Iterable[str]):
        self.lines = list(lines)
        super().__init__("\n".join(self.lines))


class ClusterError(LynxError):
    """The machine, the cluster or an installed package cannot do what was asked (exit 3)."""

    exit_code = 3


class CheckpointError(LynxError):
    """A weights file does not fit: names file, key, expected and found."""

    exit_code = 2


class SubjectError(LynxError):
    """One subject cannot be used; its shots fail alone."""


class DamagedError(LynxError):
    """A file of ours holds other bytes than were written. What was to be made of it must wait for a new one."""


class RenderError(LynxError):
    """One shot failed while rendering; others go on.

    Attributes:
        kind: of the failure: a rank ``raised``, ``died``, ``hung``, or ran out of ``memory``.
    """

    def __init__(self, message: str, kind: Kind = "raised"):
        super().__init__(message, kind)
        self.kind = kind

    def __str__(self) -> str:
        return str(self.args[0])


class Stopped(LynxError):
    """A shot was put aside on request, its resume state saved."""

    exit_code = 75
