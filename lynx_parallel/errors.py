"""The tree of errors that are reported to the user: one line and one exit code each.

The command line prints ``str(error)`` and exits with ``error.exit_code``. Only ``--debug`` prints a traceback. Each
class has a code, which names its section of ``docs/troubleshooting.md``. Imports neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, TypeVar

Result = TypeVar("Result")
Kind = Literal["subject", "died", "raised", "hung", "memory", "disk", "withheld"]
"""Of a failed attempt: a subject that cannot be used; a rank that died, raised, hung, or ran out of memory; a full
disk; a video that the safety checker withheld."""

KIND_CODES: dict[Kind, str] = {
    "subject": "LX301", "raised": "LX302", "died": "LX303", "hung": "LX304", "memory": "LX305", "disk": "LX306",
    "withheld": "LX310",
}  # fmt: skip
"""Code of each kind of failure."""
USAGE_CODE = "LX102"
"""Code of a command line that cannot be read."""
SYSTEM_CODE = "LX205"
"""Code of an error of the operating system, such as a file that cannot be read."""
FAULT_CODE = "LX206"
"""Code of a fault that all shots share."""
BLOCKED_CODE = "LX308"
"""Code of a shot that cannot be tried."""
NOT_TRIED_CODE = "LX309"
"""Code of a shot that was not tried because the run was given up."""


class LynxError(Exception):
    """Base of all errors that a user can act on. ``str(error)`` is one line, or several for InputErrors.

    Attributes:
        code: section of ``docs/troubleshooting.md``.
        place: GPU or machine where it happened, as ``Hello.place``; empty for the driver, or if unknown.
        host: name of that machine.
    """

    exit_code = 1
    code = ""
    place = ""
    host = ""


class InputErrors(LynxError):
    """All mistakes in the user's files and options, found before any work.

    Attributes:
        lines: one self-contained line per mistake: ``file:line: path: value: what is allowed``.
    """

    exit_code = 2
    code = "LX101"

    def __init__(self, lines: Iterable[str]):
        self.lines = list(lines)
        super().__init__("\n".join(self.lines))


def collect(calls: Iterable[Callable[[], Result]]) -> list[Result]:
    """Calls each and returns the results.

    Raises:
        InputErrors: that of the only call that raised one; else the lines of all that did, each line once.
    """
    results: list[Result] = []
    errors: list[InputErrors] = []
    for call in calls:
        try:
            results.append(call())
        except InputErrors as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise InputErrors(dict.fromkeys(line for error in errors for line in error.lines))
    return results


class NotApproved(InputErrors):
    """Finished shots would be made again for a reason outside the user's files, and nobody has approved it."""

    code = "LX104"


class MissingWeights(InputErrors):
    """Weights are not on this machine, and this command does not download them."""

    code = "LX105"


class ClusterError(LynxError):
    """The machine, the cluster or an installed package cannot do the requested work (exit 3)."""

    exit_code = 3
    code = "LX201"


class FolderInUse(ClusterError):
    """Another driver holds the output folder, or has taken it."""

    code = "LX202"


class Unreachable(ClusterError):
    """The Ray cluster that was named cannot be joined."""

    code = "LX203"


class DownloadError(ClusterError):
    """A server refuses a download, or cannot be reached."""

    code = "LX204"


class CheckpointError(LynxError):
    """A weights file does not fit. The message names file, key, expected and found value."""

    exit_code = 2
    code = "LX103"


class SubjectError(LynxError):
    """One subject cannot be used. Only its own shots fail."""

    code = KIND_CODES["subject"]


class WithheldError(LynxError):
    """The safety checker of the site withheld a video. Nothing of the shot is kept."""

    code = KIND_CODES["withheld"]


class DamagedError(LynxError):
    """A file in the output folder holds other bytes than were written. It must be made again first."""

    code = "LX307"


class RenderError(LynxError):
    """One shot failed while rendering. Other shots are not affected.

    Attributes:
        kind: of the failure: a rank ``raised``, ``died``, ``hung``, or ran out of ``memory``.
    """

    code = KIND_CODES["raised"]

    def __init__(self, message: str, kind: Kind = "raised"):
        super().__init__(message, kind)
        self.kind = kind
        self.code = KIND_CODES[kind]

    def __str__(self) -> str:
        return str(self.args[0])


class Stopped(LynxError):
    """A shot was stopped on request after its resume state was saved."""

    exit_code = 75
    code = "LX501"
