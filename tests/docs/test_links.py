"""Every relative link of the documentation leads to a file and a heading that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.documents import DOCUMENTS, anchors, links
from tests.helpers.repository import REPOSITORY

PAGES = [*DOCUMENTS, *(str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("benchmarks/results/*.md"))]


def wrong_links(document: str) -> list[str]:
    wrong = []
    for line, target in links(document):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (REPOSITORY / document).parent / name if name else REPOSITORY / document
        if not path.exists():
            wrong.append(f"{document}:{line}: {target}: no such file")
        elif not path.resolve().is_relative_to(REPOSITORY):
            wrong.append(f"{document}:{line}: {target}: outside of the repository")
        elif anchor and (path.suffix != ".md" or anchor not in anchors(path)):
            wrong.append(f"{document}:{line}: {target}: no such heading")
    return wrong


@pytest.mark.parametrize("document", PAGES)
def test_every_link_leads_somewhere(document: str) -> None:
    assert not wrong_links(document)


def test_every_page_can_be_found() -> None:
    """From the README, by links alone."""
    found, left = set[Path](), [REPOSITORY / "README.md"]
    while left:
        page = left.pop()
        found.add(page)
        for _, target in links(str(page.relative_to(REPOSITORY))):
            path = (page.parent / target.partition("#")[0]).resolve()
            if path.suffix == ".md" and path.is_file() and path not in found:
                left.append(path)
    pages = {REPOSITORY / name for name in DOCUMENTS if name.startswith("docs/")}
    assert len(pages) > 20
    assert not pages - found


def test_every_page_says_who_it_is_for() -> None:
    for name in DOCUMENTS:
        if name.startswith("docs/"):
            first = (REPOSITORY / name).read_text().split("\n\n")[1:3]
            assert any(text.startswith("This page is for ") for text in first), name


def test_anchors_follow_githubs_rules(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# What's new, in `1.0`?\n## Plan & [watch](x.md)\n## Plan & watch\n```\n# no heading\n```\n### LX101\n"
    )
    assert anchors(page) == {"whats-new-in-10", "plan--watch", "plan--watch-1", "lx101"}
