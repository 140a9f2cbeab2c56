"""What the files of an output folder say about shots."""

from __future__ import annotations

from pathlib import Path

import pytest

from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import Journal
from lynx_parallel.output.shot_states import count_states, shot_states
from tests.helpers.campaigns import finish, load, write


@pytest.fixture
def output(tmp_path: Path) -> Output:
    """ada/walk is done, ada/run failed, bob/walk is blocked, bob/run was begun."""
    write(tmp_path)
    campaign = load(tmp_path)
    output = Output(campaign.output)
    finish(campaign, campaign.shots[0])
    journal = Journal(output.journal)
    journal.append("attempt", name="ada/walk-t01", attempt=1)
    journal.append("failed", name="ada/walk-t01", reason="an earlier failure")
    journal.append("done", name="ada/walk-t01", video="0")
    journal.append("attempt", name="ada/run-t01", attempt=1)
    journal.append("failed", name="ada/run-t01", reason="no face", code="LX301")
    journal.append("blocked", name="bob/walk-t01", reason="consent expired")
    journal.append("failed", name="bob/run-t01", reason="out of memory")
    journal.append("attempt", name="bob/run-t01", attempt=2)
    journal.close()
    output.logs("ada/run-t01", 1).mkdir(parents=True)
    return output


def test_states(output: Output) -> None:
    names = ["ada/walk-t01", "ada/run-t01", "bob/walk-t01", "bob/run-t01", "cleo/walk-t01"]
    states = shot_states(output, names)
    assert [(shot.name, shot.state, shot.reason) for shot in states] == [
        ("ada/walk-t01", "done", ""),
        ("ada/run-t01", "failed", "no face"),
        ("bob/walk-t01", "blocked", "consent expired"),
        ("bob/run-t01", "left", ""),
        ("cleo/walk-t01", "left", ""),
    ]
    assert [shot.code for shot in states[1:3]] == ["LX301", ""]
    assert states[1].logs == ".lynx/logs/ada/run-t01"
    assert states[0].sidecar is not None
    assert count_states(states) == {
        "done": 1, "failed": 1, "blocked": 1, "withheld": 0, "auditioned": 0, "not chosen": 0, "left": 2,
    }  # fmt: skip
    assert {shot.name for shot in shot_states(output)} == set(names[:4])


def test_states_without_reading_the_sidecars_are_the_same(output: Output) -> None:
    (output.folder / "ada" / "notes.json").write_text('{"version": 2}')
    for names in (None, ["ada/walk-t01", "ada/run-t01", "cleo/walk-t01"]):
        read, not_read = shot_states(output, names), shot_states(output, names, read=False)
        assert [(shot.name, shot.state, shot.reason) for shot in read] == [
            (shot.name, shot.state, shot.reason) for shot in not_read
        ]
        assert all(shot.sidecar is None for shot in not_read)


def test_a_sidecar_without_its_video_is_not_done(output: Output) -> None:
    output.path("ada/walk-t01", "video").unlink()
    assert shot_states(output, ["ada/walk-t01"])[0].state == "left"


def test_an_empty_folder_has_no_shots(tmp_path: Path) -> None:
    assert shot_states(Output(tmp_path)) == []
