"""How the tests are laid out: helpers in tests/helpers, folders that mirror the package."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import MARKERS
from tests.helpers.repository import REPOSITORY

TESTS = REPOSITORY / "tests"
OTHERS = {
    "benchmarks", "chaos", "cluster", "distributed", "docs", "forked", "fuzz", "golden", "gpu", "gpu_dry_run",
    "helpers", "integration", "parity", "recorded", "upstream",
}  # fmt: skip
"""Folders that mirror no room of the package."""


def test_no_test_imports_from_another_test() -> None:
    wrong = [
        f"{path.relative_to(TESTS)}: {name}"
        for path in sorted(TESTS.rglob("*.py"))
        if path != Path(__file__)
        for name in re.findall(r"^\s*from (tests\.[\w.]+) import", path.read_text(), re.M)
        if name.rpartition(".")[2].startswith(("test_", "conftest"))
    ]
    assert not wrong


def test_folders_mirror_the_package() -> None:
    folders = {path.name for path in TESTS.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))}
    rooms = {path.name for path in (REPOSITORY / "lynx_parallel").iterdir() if path.is_dir()}
    assert folders - OTHERS <= rooms
    assert folders >= OTHERS
    assert MARKERS.keys() <= folders
