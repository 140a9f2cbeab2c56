"""Several child processes of the doctor at once."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from lynx_parallel.doctor import children


def test_one_that_cannot_start_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[bool] = []

    def ask(report: str, device: str, *arguments: str, stop: threading.Event, **options: Any) -> children.Answer:
        if device == "cuda:0":
            raise OSError("no process can be started")
        stopped.append(stop.wait(30))
        return children.Answer()

    monkeypatch.setattr(children, "ask", ask)
    with pytest.raises(OSError, match="no process can be started"):
        children.ask_together([("examine", "cuda:0"), ("examine", "cuda:1")])
    assert stopped == [True]
