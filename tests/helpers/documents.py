"""Command blocks of the documentation."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.helpers.repository import REPOSITORY

DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "cluster/README.md",
    "benchmarks/README.md",
    "docs/events.md",
    "docs/report.md",
)


@dataclass(frozen=True)
class Block:
    """A block of commands.

    Attributes:
        mark: text of the comment above it: ``not run: …``, ``run by …``, or empty.
    """

    document: str
    line: int
    mark: str
    commands: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks(document: str) -> list[Block]:
    """All ``sh`` and ``console`` blocks of a document."""
    text = (REPOSITORY / document).read_text()
    found = []
    for match in re.finditer(r"(?:<!-- (.*?) -->\n)?```(sh|console)\n(.*?)```", text, re.S):
        mark, kind, body = match.groups()
        lines = body.splitlines()
        if kind == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")] or ["…"]
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(document, line, mark or "", tuple(line for line in lines if line.strip())))
    return found
