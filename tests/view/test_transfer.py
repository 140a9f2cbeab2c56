"""Progress of a transfer: a bar on a terminal, else lines."""

from __future__ import annotations

import io
import re

import pytest

from lynx_parallel.text import shown_size
from lynx_parallel.view import transfer
from lynx_parallel.view.transfer import Transfer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    stream = io.StringIO()
    with Transfer(20_000_000, 5_000_000, "downloaded", stream, said.append) as running:
        running.advance(1_000_000)
        assert said == []  # not yet
        monkeypatch.setattr(transfer, "LINE_EVERY_S", 0.0)
        running.advance(4_000_000)
    assert re.fullmatch(r"downloaded 10\.0 MB of 20\.0 MB, [\d.]+ [GMk]?B/s, \d+ min left", said[0])
    assert len(said) == 1
    assert stream.getvalue() == ""


def test_a_bar_on_a_terminal() -> None:
    said: list[str] = []
    stream = Terminal()
    with Transfer(20_000_000, 5_000_000, "downloaded", stream, said.append) as running:
        running.advance(5_000_000)
    assert "downloaded" in stream.getvalue()
    assert "10.0/20.0 MB" in stream.getvalue()
    assert said == []


def test_no_bar_and_no_line() -> None:
    with Transfer(10, 0, "downloaded", None, lambda line: None) as running:
        running.advance(10)
    assert running.arrived == 10


def test_stopped() -> None:
    running = Transfer(10, 0, "downloaded", io.StringIO(), print)
    running.advance(1)
    running.stop()
    with pytest.raises(RuntimeError, match="stopped"):
        running.advance(1)


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_500_000, "1.5 MB"), (65_600_000_000, "65.6 GB")],
)
def test_sizes(count: int, shown: str) -> None:
    assert shown_size(count) == shown
