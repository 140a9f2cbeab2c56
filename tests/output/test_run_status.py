"""The status file of a run: what is written is read, and nothing half-written is ever read."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from lynx_parallel.output.run_status import FailedShot, GangStatus, RunStatus, read_status, write_status

STATUS = RunStatus(
    "2026-11-27T0600", "m.yaml", "node-1", 7, "then", "now", "running", 8, 6, 2, 1, 1, 1, 1, 2, 0.25, 10.0, 30.0, 20.0,
    "NVIDIA H200", (GangStatus("denoising", "ada/walk-t01", 3, 50, 3.3, 0, 0, 41, 141, 2, "NVIDIA H200", ("node-1",)),),
    (FailedShot("bob/walk-t01", "no face", ".lynx/logs/bob/walk-t01"),),
)  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    assert read_status(path) is None
    write_status(path, STATUS)
    assert read_status(path) == STATUS
    assert STATUS.finished == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["status.json"]


def test_keys_of_a_later_version_are_ignored_and_another_version_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    more = {**STATUS.as_json(), "weather": "fine", "gangs": [{**STATUS.as_json()["gangs"][0], "colour": 1}]}
    path.write_text(json.dumps(more))
    assert read_status(path) == STATUS
    path.write_text(json.dumps({**more, "version": 2}))
    assert read_status(path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 1}'])
def test_anything_else_is_no_status(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    assert read_status(tmp_path / "status.json") is None


def test_a_status_that_cannot_be_written_is_lost_alone(tmp_path: Path) -> None:
    (tmp_path / "status.json").mkdir()
    write_status(tmp_path / "status.json", STATUS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["status.json"]


def test_a_reader_never_sees_a_torn_status(tmp_path: Path) -> None:
    path, stop = tmp_path / "status.json", threading.Event()
    long = replace(STATUS, failures=tuple(FailedShot(f"shot-{n}", "x" * 2000) for n in range(20)))
    write_status(path, STATUS)

    def write() -> None:
        while not stop.is_set():
            write_status(path, long)
            write_status(path, STATUS)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = [read_status(path) for _ in range(2000)]
    finally:
        stop.set()
        writer.join()
    assert set(seen) == {STATUS, long}
