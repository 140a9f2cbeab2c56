"""status and failures: what an output folder says, from any shell, without torch or Ray."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import Journal, now
from lynx_parallel.output.lock import Lock, holder
from lynx_parallel.output.run_status import GangStatus, RunStatus, write_status
from tests.helpers.campaigns import draw, finish, load, tree, write
from tests.helpers.light_command import errors_of, light

GANG = GangStatus("denoising", "ada/run-t01", 12, 50, 3.3, ranks=2, device="NVIDIA H200", hosts=("node-1",))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One of four shots is done, one has failed."""
    write(tmp_path)
    draw(tmp_path)
    campaign = load(tmp_path)
    finish(campaign, campaign.shots[0])
    output = Output(campaign.output)
    journal = Journal(output.journal)
    journal.append("failed", name="bob/walk-t01", reason="bob.jpg: no face was found", code="LX301")
    journal.append("failed", name="bob/run-t01", reason="RuntimeError: CUDA out of memory. (logs: out/.lynx/logs/x)")
    journal.close()
    return tmp_path


def run_status(folder: Path, **changes: object) -> Output:
    output = Output(folder / "out")
    status = RunStatus(
        "r", "m.yaml", "node-1", os.getpid(), now(), now(), "running", 4, 3, 1, gangs=(GANG,), fraction=0.4,
        left_seconds=720.0,
    )  # fmt: skip
    write_status(output.status, replace(status, **changes))  # type: ignore[arg-type]
    return output


def test_without_a_run(folder: Path) -> None:
    before = tree(folder)
    done = light("status", "m.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "out: 1 of 4 shots done, 2 failed, 1 left",
        "no run is at work",
        "failed bob/walk-t01: bob.jpg: no face was found",
        "failed bob/run-t01: RuntimeError: CUDA out of memory. (logs: out/.lynx/logs/x)",
    ]
    assert tree(folder) == before


def test_a_run_at_work(folder: Path) -> None:
    output = run_status(folder)
    with Lock(output.private / "lock"):
        lines = light("status", "out", cwd=folder).stdout.splitlines()
        as_json = json.loads(light("status", "out", "--json", cwd=folder).stdout)
    assert lines[0] == "out: 1 of 4 shots done, 2 failed, 1 left"
    assert lines[1].startswith(f"running: process {os.getpid()} on ")
    assert "40 %" in lines[2]
    assert "about 12 min left" in lines[2]
    assert any("ada/run-t01" in line and "12/50" in line for line in lines)
    assert as_json["alive"] is True
    assert {name: count for name, count in as_json["counts"].items() if count} == {"done": 1, "failed": 2, "left": 1}
    assert as_json["run"]["gangs"][0]["step"] == 12
    assert [one["name"] for one in as_json["failures"]] == ["bob/run-t01", "bob/walk-t01"]


def test_a_driver_that_was_killed(folder: Path) -> None:
    run_status(folder)
    lines = light("status", "out", cwd=folder).stdout.splitlines()
    assert re.fullmatch(
        rf"the driver \(process {os.getpid()} on node-1\) was killed or cannot be reached; "
        r"its last update was \d+ s ago; run again to resume",
        lines[1],
    )
    assert not any("denoising" in line for line in lines), "nothing half-done looks at work"


def test_a_lock_that_a_killed_driver_has_left(folder: Path) -> None:
    output = run_status(folder)
    lock = output.private / "lock"
    with Lock(lock):
        held = json.loads(lock.read_text())
    lock.write_text(json.dumps({**held, "pid": 2**22 - 1, "started": "1"}))
    assert holder(lock) == (f"process {2**22 - 1} on {held['host']}", False)
    assert "was killed or cannot be reached" in light("status", "out", cwd=folder).stdout


def test_a_run_that_ended(folder: Path) -> None:
    run_status(folder, exit_code=1, state="ended", seconds=7200.0)
    line = light("status", "out", cwd=folder).stdout.splitlines()[1]
    assert re.fullmatch(r"no run is at work; the last one ended \d+ s ago with exit code 1, after 2 h 0 min", line)


def test_watch_ends_with_the_run(folder: Path) -> None:
    run_status(folder, exit_code=0, state="ended")
    done = light("status", "--watch", "out", cwd=folder)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 4)


def test_the_folder_that_was_written_last_is_found(folder: Path, tmp_path: Path) -> None:
    assert light("status", cwd=folder).stdout.startswith("out: 1 of ")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused = light("status", cwd=empty)
    assert refused.returncode == 2
    assert errors_of(refused) == ["no output folder here: name a manifest or an output folder"]
    (tmp_path / "plain").mkdir()
    other = light("status", "plain", cwd=tmp_path)
    assert other.returncode == 2
    assert errors_of(other) == ["plain: not an output folder: it holds neither .lynx nor a sidecar"]
    assert light("status", "none.yaml", cwd=tmp_path).returncode == 2


def test_a_folder_that_can_only_be_read(folder: Path) -> None:
    """Another user looks on. (As root, permissions do not bind; the lock's clock is then the file system's.)"""
    output = run_status(folder)
    with Lock(output.private / "lock"):
        output.private.chmod(0o555)
        try:
            assert "running: " in light("status", "out", cwd=folder).stdout
        finally:
            output.private.chmod(0o755)


def test_failures_and_what_to_do(folder: Path) -> None:
    done = light("failures", "m.yaml", cwd=folder)
    assert done.returncode == 1
    face, memory = done.stdout.splitlines()
    assert face == (
        "bob/walk-t01: failed: bob.jpg: no face was found. Correct the input or read the logs, then run again. [LX301]"
    )
    assert memory.startswith("bob/run-t01: failed: RuntimeError: CUDA out of memory. (logs: ")
    assert memory.endswith(
        "Another process uses the memory. On a GPU, nvidia-smi lists such processes. End them and run again. [LX305]"
    )
    found = json.loads(light("failures", "m.yaml", "--json", cwd=folder).stdout)
    assert [one["name"] for one in found["failures"]] == ["bob/walk-t01", "bob/run-t01"]
    assert [one["code"] for one in found["failures"]] == ["LX301", "LX305"], "the second journal entry has no code"
    assert found["exit_code"] == 1
    assert done.stderr == "help: lynx-render help LX301 LX305\n"
    status = json.loads(light("status", "m.yaml", "--json", cwd=folder).stdout)
    assert {one["name"]: one["code"] for one in status["failures"]} == {
        "bob/walk-t01": "LX301", "bob/run-t01": "LX305",
    }  # fmt: skip


def test_no_failures(folder: Path) -> None:
    campaign = load(folder)
    for shot in campaign.shots[2:]:
        finish(campaign, shot)
    done = light("failures", "m.yaml", cwd=folder)
    assert (done.returncode, done.stdout) == (0, "out: no shot has failed\n")


@pytest.mark.parametrize("command", ["status", "failures"])
def test_a_wrong_manifest_is_a_line(folder: Path, command: str) -> None:
    (folder / "m.yaml").write_text("version: 1\n")
    done = light(command, "m.yaml", cwd=folder)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
