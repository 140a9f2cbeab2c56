"""Commands of the user's own tools."""

from __future__ import annotations

import pytest

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.tool_command import read_tool_command


def test_placeholders_are_replaced_within_arguments_and_nothing_else_is() -> None:
    words = ["sh", "-c", "awk '{print $1}'", "--in={in}", "{out}", "{{take}}", "{subject}/{name}", "$HOME; {x}"]
    command = read_tool_command(words, ".mp4")
    values = {"in": "/a b/{out}.mp4", "out": "/o.mp4", "take": 2, "subject": "ada", "name": "ada/walk"}
    assert command.filled(values) == [
        "sh", "-c", "awk '{print $1}'", "--in=/a b/{out}.mp4", "/o.mp4", "{2}", "ada/ada/walk", "$HOME; {x}"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "suffix", "beginnings"),
    [
        ([], ".mp4", ["COMMAND is missing: end with -- and a command"]),
        (["no-such-tool", "{in}", "{out}"], ".mp4", ["COMMAND: 'no-such-tool': no such program"]),
        (["true", "{out}"], ".mp4", ["COMMAND: {in} is missing: it stands for the video to read; placeholders: {in}"]),
        (
            ["true", "{in}", "{seeed}"],
            "mp4",
            [
                "COMMAND: {out} is missing: it stands for the file to write",
                "COMMAND: {seeed}: did you mean {seed}?",
                "--suffix 'mp4': must be like .mp4",
            ],
        ),
        (["true", "{in}", "{out}"], "./x", ["--suffix './x': must be like .mp4"]),
    ],
)
def test_mistakes(words: list[str], suffix: str, beginnings: list[str]) -> None:
    with pytest.raises(InputErrors) as error:
        read_tool_command(words, suffix)
    lines = error.value.lines
    assert len(lines) == len(beginnings), lines
    assert all(line.startswith(beginning) for line, beginning in zip(lines, beginnings, strict=True)), lines
