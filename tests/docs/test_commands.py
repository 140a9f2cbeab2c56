"""Every command block of the documentation is executed by a test, or marked with the reason why not."""

from __future__ import annotations

import re

import pytest

from tests.helpers.documents import DOCUMENTS, Block, blocks
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
        assert block.document == "README.md", "only blocks of README.md are run, by tests/integration/test_readme.py"


def test_there_are_blocks() -> None:
    assert len([block for name in DOCUMENTS for block in blocks(name)]) > 10
    assert any(not block.mark for block in blocks("README.md"))
