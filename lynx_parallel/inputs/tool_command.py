"""The command of a user's own tool, with placeholders. Imports neither torch nor Ray."""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.problems import shown_value

PLACEHOLDERS = (
    "in",
    "out",
    "name",
    "subject",
    "prompt",
    "variant",
    "take",
    "seed",
    "width",
    "height",
    "num_frames",
    "fps",
)
"""Names that stand in braces for the video, the file to write, and facts of the shot."""
_BRACES = re.compile(r"\{([a-z_]+)\}")
_SUFFIX = re.compile(r"(\.[A-Za-z0-9][A-Za-z0-9_-]{0,15}){1,2}")


@dataclass(frozen=True)
class ToolCommand:
    """A command without a shell.

    Attributes:
        words: program and arguments, with placeholders.
    """

    words: tuple[str, ...]

    def filled(self, values: Mapping[str, object]) -> list[str]:
        """Returns the command of one video. Other words in braces stay as they are: tools have their own.

        Args:
            values: of all ``PLACEHOLDERS``.
        """
        return [_BRACES.sub(lambda found: str(values.get(found[1], found[0])), word) for word in self.words]


def read_tool_command(words: Sequence[str], suffix: str) -> ToolCommand:
    """Returns the command after ``--``.

    Args:
        suffix: of the files that it writes, for its check.

    Raises:
        InputErrors: no command, no such program, a placeholder is missing or misspelt, or the suffix cannot be one.
    """
    lines = list(_mistakes(words))
    if not _SUFFIX.fullmatch(suffix):
        lines.append(f"--suffix {shown_value(suffix)}: must be like .mp4")
    if lines:
        raise InputErrors(lines)
    return ToolCommand(tuple(words))


def _mistakes(words: Sequence[str]) -> Iterator[str]:
    if not words:
        yield "COMMAND is missing: end with -- and a command, such as: -- upscale {in} {out}"
        return
    if shutil.which(words[0]) is None:
        yield f"COMMAND: {shown_value(words[0])}: no such program"
    found = dict.fromkeys(name for word in words for name in _BRACES.findall(word))
    for name, meaning in (("in", "the video to read"), ("out", "the file to write")):
        if name not in found:
            yield f"COMMAND: {{{name}}} is missing: it stands for {meaning}; placeholders: {_listed()}"
    for name in found:
        near = difflib.get_close_matches(name, PLACEHOLDERS, n=1, cutoff=0.75)
        if name not in PLACEHOLDERS and near:
            yield f"COMMAND: {{{name}}}: did you mean {{{near[0]}}}? (placeholders: {_listed()})"


def _listed() -> str:
    return ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
