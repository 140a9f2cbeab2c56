"""Command blocks, links and headings of the documentation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.repository import REPOSITORY

TUTORIAL = "docs/tutorial.md"
DOCUMENTS = tuple(
    sorted(
        str(path.relative_to(REPOSITORY))
        for pattern in ("*.md", "docs/**/*.md", "cluster/*.md", "benchmarks/*.md", "tests/recorded/*.md")
        for path in REPOSITORY.glob(pattern)
    )
)
"""All pages of the repository but the results of benchmarks."""


@dataclass(frozen=True)
class Block:
    """A block of commands, or the content of a file.

    Attributes:
        mark: text of the comment above it: ``not run: …``, ``run by …``, ``file: …``, or empty.
        kind: ``sh``, ``console``, ``text`` and so on.
        commands: lines to run; of other kinds, all lines.
    """

    document: str
    line: int
    mark: str
    kind: str
    commands: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def all_blocks(document: str) -> list[Block]:
    """All blocks of a document."""
    text = (REPOSITORY / document).read_text()
    found = []
    for match in re.finditer(r"(?:<!-- (.*?) -->\n)?```([a-z]+)\n(.*?)```", text, re.S):
        mark, kind, body = match.groups()
        lines = body.splitlines()
        if kind == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")] or ["…"]
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(document, line, mark or "", kind, tuple(line for line in lines if line.strip())))
    return found


def blocks(document: str) -> list[Block]:
    """All ``sh`` and ``console`` blocks of a document."""
    return [block for block in all_blocks(document) if block.kind in ("sh", "console")]


def links(document: str) -> Iterator[tuple[int, str]]:
    """Yields line number and target of each link and image of a document. Code is left out."""
    text = _without_code((REPOSITORY / document).read_text())
    for match in re.finditer(r"\]\(([^()\s]+)\)|\b(?:src|href)=\"([^\"]+)\"", text):
        yield text.count("\n", 0, match.start()) + 1, match[1] or match[2]


def anchors(path: Path) -> set[str]:
    """Returns the anchors of a page's headings by GitHub's rules."""
    found: set[str] = set()
    for line in _without_code(path.read_text(), inline=False).splitlines():
        if heading := re.match(r"#{1,6} +(.*?) *#*$", line):
            words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
            name = "".join(c for c in words if c in " -_" or unicodedata.category(c)[0] in "LNM").replace(" ", "-")
            number = 1
            while (anchor := name if number == 1 else f"{name}-{number - 1}") in found:
                number += 1
            found.add(anchor)
    return found


def _without_code(text: str, *, inline: bool = True) -> str:
    """Returns text without code blocks and, if asked for, code spans; line breaks stay."""
    text = re.sub(r"^```.*?^```", lambda match: "\n" * match[0].count("\n"), text, flags=re.M | re.S)
    return re.sub(r"`[^`]*`", lambda match: "\n" * match[0].count("\n"), text) if inline else text
