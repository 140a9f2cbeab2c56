"""The status of a run in words, and the live view on terminals of several sizes."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from lynx_parallel.output.run_status import FailedShot, GangStatus, RunStatus
from lynx_parallel.view.live import Screen, can_be_live, run_view
from lynx_parallel.view.run_text import ago, gang_text, gpu_hours, sum_up

GANG = GangStatus(
    "denoising", "ada/beach-t01", 12, 50, 3.31, memory=41 * 10**9, memory_total=141 * 10**9, ranks=2,
    device="NVIDIA H200", hosts=("node-1",), finishing=1,
)  # fmt: skip
LOADING = GangStatus("loading the weights", read=12 * 10**9, to_read=34 * 10**9, ranks=2)
STATUS = RunStatus(
    state="running", total=10, to_make=8, done=2, rendered=3, fraction=0.41, left_seconds=750, gpu_seconds=3600.0,
    device="NVIDIA H200", gangs=(GANG, LOADING),
)  # fmt: skip


def test_one_line() -> None:
    assert sum_up(STATUS) == "[3/8] 41 %, about 12 min left, 2 gangs at work, 1.00 GPU-hours"
    assert sum_up(replace(STATUS, gangs=(), left_seconds=None, device="cpu", failed=1)) == "[4/8] 41 %, 1 failed"


def test_a_gang_in_columns() -> None:
    assert gang_text(GANG) == ("denoising, encoding 1", "ada/beach-t01", "12/50", "3.31 s", "41/141 GB")
    assert gang_text(LOADING) == ("loading the weights 12.0 of 34.0 GB", "", "", "", "")
    assert gang_text(GangStatus("idle", finishing=1)) == ("encoding 1", "", "", "", "")


def test_hours_are_those_of_gpus() -> None:
    assert gpu_hours(STATUS) == "1.00 GPU-hours"
    assert gpu_hours(replace(STATUS, device="cpu")) == gpu_hours(replace(STATUS, device="")) == ""


def test_how_long_ago() -> None:
    assert ago((datetime.now(UTC) - timedelta(minutes=5)).isoformat()) == "5 min"
    assert ago((datetime.now(UTC) + timedelta(minutes=5)).isoformat()) == "0 s", "another machine's clock"
    assert ago("x") == "an unknown time"


def shown(status: RunStatus, width: int, height: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    with console.capture() as capture:
        console.print(run_view(status, console))
    return [line.rstrip() for line in capture.get().splitlines()]


@pytest.mark.parametrize("width", [20, 40, 80, 140, 300])
def test_the_view_fits_the_terminal(width: int) -> None:
    long = replace(GANG, shot="a-subject-with-a-long-name/a-prompt-with-a-long-name-t01-a-variant")
    lines = shown(replace(STATUS, gangs=(long, LOADING), failed=1, failures=(FailedShot("x" * 90, "y" * 300),)), width)
    assert all(len(line) <= width for line in lines)
    assert len(lines) == 5


def test_what_the_view_shows() -> None:
    wide = "\n".join(shown(STATUS, 140))
    for text in ("41 %", "3/8 shots", "about 12 min left", "1.00 GPU-hours", "ada/beach-t01", "12/50", "3.31 s",
                 "41/141 GB", "2 × NVIDIA H200 on node-1", "12.0 of 34.0 GB"):  # fmt: skip
        assert text in wide
    narrow = "\n".join(shown(STATUS, 80))
    assert "ada/beach-t01" in narrow
    assert "12/50" in narrow
    assert "node-1" not in narrow


def test_many_gangs_fit_the_height() -> None:
    lines = shown(replace(STATUS, gangs=(GANG,) * 100), 120, 20)
    assert len(lines) <= 20
    assert "and 86 more gangs" in lines[-1] or "more" in lines[-1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_are_printed_above_the_view_and_the_view_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    assert can_be_live(stream)
    with Screen(stream) as screen:
        screen("before")
        screen.progress("step 1")
        screen.watch(STATUS)
        screen("between [1/8]")
        screen.progress("step 2")
        screen.watch(replace(STATUS, exit_code=0))
        screen("after")
    text = stream.getvalue()
    assert text.index("before") < text.index("41 %") < text.index("between [1/8]") < text.index("after")
    assert "step 1" in text
    assert "step 2" not in text, "the view shows it"
    assert text.endswith("after\n")
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is shown again"
    assert text.rindex("\x1b[2K") > text.rindex("41 %"), "the view is erased"


def test_no_colours_where_none_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    with Screen(stream) as screen:
        screen.watch(replace(STATUS, failed=1, failures=(FailedShot("bob/walk", "no face"),)))
    assert "\x1b[31m" not in stream.getvalue()
    assert "bob/walk" in stream.getvalue()


def test_a_pipe_and_a_dumb_terminal_are_not_live(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not can_be_live(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not can_be_live(Terminal())
    closed = Terminal()
    closed.close()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(Terminal, "isatty", lambda self: io.StringIO.isatty(self))
    assert not can_be_live(closed)
