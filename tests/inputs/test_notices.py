"""Warnings about the input: one line per kind, a count and three examples."""

from __future__ import annotations

import pytest

from lynx_parallel.cli.options import show_notices
from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.notices import Notice, notice_lines, notices_as_json

LONG = [Notice("too-long", "prompts are cut", f"p{number}") for number in range(5)]
OTHER = Notice("left-out", "files were left out", "Thumbs.db")


def test_one_line_per_kind() -> None:
    assert notice_lines([]) == []
    assert notice_lines([LONG[0], OTHER, *LONG]) == [
        "warning: prompts are cut (5): p0; p1; p2; and 2 more",
        "warning: files were left out (1): Thumbs.db",
    ]
    assert notice_lines(LONG[:3]) == ["warning: prompts are cut (3): p0; p1; p2"]


def test_json_has_every_example() -> None:
    assert notices_as_json(LONG) == [
        {"kind": "too-long", "message": "prompts are cut", "count": 5, "examples": ["p0", "p1", "p2", "p3", "p4"]}
    ]


def test_strict(capsys: pytest.CaptureFixture[str]) -> None:
    show_notices([], strict=True)
    show_notices([OTHER], strict=False)
    assert capsys.readouterr().err == "warning: files were left out (1): Thumbs.db\n"
    with pytest.raises(InputErrors, match=r"^warning: files were left out \(1\): Thumbs.db$"):
        show_notices([OTHER], strict=True)
