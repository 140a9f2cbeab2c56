"""Every command block of the documentation is executed by a test, or marked with the reason why not."""

from __future__ import annotations

import re

import pytest

from tests.helpers.documents import DOCUMENTS, TUTORIAL, Block, blocks
from tests.helpers.repository import REPOSITORY


@pytest.mark.parametrize("block", [block for name in DOCUMENTS for block in blocks(name)], ids=str)
def test_it_is_run_or_says_why_not(block: Block) -> None:
    if block.mark.startswith("not run: "):
        assert len(block.mark) > len("not run: ") + 10
    elif block.mark.startswith("run by "):
        path = REPOSITORY / block.mark.removeprefix("run by ")
        programs = {command.split()[0] for command in block.commands}
        assert programs & set(re.findall(r"[a-z-]+", path.read_text())), f"{path} runs none of {programs}"
    else:
        # tests/integration/test_tutorial.py runs the tutorial, test_readme.py the others.
        programs = {command.split()[0] for command in block.commands}
        assert block.document == TUTORIAL or programs == {"lynx-render"}


def test_there_are_blocks() -> None:
    assert len([block for name in DOCUMENTS for block in blocks(name)]) > 30
    for name in ("README.md", TUTORIAL, "docs/how-to/watch.md"):
        assert any(not block.mark for block in blocks(name)), name
