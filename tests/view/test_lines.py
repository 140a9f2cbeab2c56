"""Plain lines, few lines, and events."""

from __future__ import annotations

import io
import json

import pytest

from lynx_parallel.output.run_status import RunStatus
from lynx_parallel.view import lines as lines_module
from lynx_parallel.view.events import Events, open_events
from lynx_parallel.view.lines import Lines, Quiet

RUNNING = RunStatus(state="running", to_make=4, rendered=1, fraction=0.5, left_seconds=60)


def test_plain_lines_sum_up_the_run_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(lines_module.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    lines = Lines(stream)
    for second in range(95):
        clock[0] = float(second)
        lines.watch(RUNNING)
    assert stream.getvalue().splitlines() == ["[1/4] 50 %, about 60 s left"] * 3


def test_quiet_prints_warnings_alone() -> None:
    stream = io.StringIO()
    quiet = Quiet(stream)
    quiet("rendered")
    quiet("warning: a face is small")
    quiet.progress("step 3")
    quiet.watch(RUNNING)
    assert stream.getvalue() == "warning: a face is small\n"


def test_events_are_lines_of_json_with_a_schema() -> None:
    stream = io.StringIO()
    events = Events(stream)
    events({"event": "done", "name": "ada/ä\udce4", "version": "0.1.0"})
    events({"event": "status", "status": RUNNING.as_json()})
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["schema"], first["event"], first["version"]) == (1, "done", "0.1.0")
    assert second["status"]["rendered"] == 1


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_reader_that_has_ended_costs_its_events_alone() -> None:
    Events(Gone())({"event": "done"})


def test_a_file_of_events_is_continued(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for number in range(2):
        with open_events(str(tmp_path / "e.jsonl")) as stream:
            Events(stream)({"event": "x", "number": number})
    assert [json.loads(line)["number"] for line in (tmp_path / "e.jsonl").read_text().splitlines()] == [0, 1]
