"""lynx-render reroll, takes export and render --review, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lynx_parallel.engine.record import write_record
from lynx_parallel.inputs.records import Request
from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import Journal
from tests.helpers.campaigns import draw, finish, load, write
from tests.helpers.light_command import errors_of, light, of_shots, without_texts
from tests.helpers.planned import parts_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Every shot is done, by a recorded run."""
    write(tmp_path)
    draw(tmp_path)
    campaign = load(tmp_path)
    output = Output(campaign.output)
    write_record(output.record("2026-11-27T060000"), campaign, parts_of(campaign), Request(), "2026-11-27T06:00:00")
    for shot in campaign.shots:
        finish(campaign, shot, run="2026-11-27T060000")
    Journal(output.journal).append("done", name="ada/walk-t01", video="0")
    return tmp_path


def test_a_reroll_is_planned_as_the_users_own_edit(folder: Path, demo: Path) -> None:
    done = light("reroll", "ada/walk-t01", "--from", "m.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("ada/walk-t01: seed 42 → ")
    assert second == "render again to make them"
    seed = int(first.split()[-1])
    printed = light("plan", "m.yaml", "--shots", "--only", "ada/walk", cwd=folder).stdout
    assert "sampling.seed" in of_shots(printed)[0]
    assert f"sampling.seed 42 → {seed}" in printed
    reroll = next(line for line in printed.splitlines() if "sampling.seed 42" in line)
    assert "this build of lynx-parallel" not in reroll
    assert "made them differently" not in reroll
    rows = json.loads(light("plan", "m.yaml", "--json", cwd=folder).stdout)["shots"]
    assert next(row["seed"] for row in rows if row["name"] == "ada/walk-t01") == seed


def test_the_folder_of_the_last_run_is_enough(folder: Path, demo: Path) -> None:
    assert light("reroll", "bob/run-t01", cwd=folder).returncode == 0
    assert light("reroll", "bob/run-t01", "--from", "out", cwd=folder).returncode == 0
    exported = light("takes", "export", cwd=folder)
    assert exported.returncode == 0
    assert exported.stdout.count('"state": "rejected"') == 2


def test_a_shot_that_does_not_exist(folder: Path) -> None:
    done = light("reroll", "ada/wlak-t01", "--from", "m.yaml", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith("ada/wlak-t01: no such shot; did you mean 'ada/walk-t01'?")
    assert not (folder / "out" / ".lynx" / "takes.json").exists()


def test_a_folder_whose_run_cannot_be_read(folder: Path) -> None:
    (folder / "ada.jpg").unlink()
    done = light("reroll", "ada/walk-t01", "--from", "out", cwd=folder)
    assert done.returncode == 2
    assert errors_of(done) == ["out: its last run cannot be read any more: add --from MANIFEST"]


def test_takes_are_exported_to_a_file_that_a_manifest_names(folder: Path, demo: Path) -> None:
    light("reroll", "ada/walk-t01", "--from", "m.yaml", cwd=folder)
    done = light("takes", "export", "spring.takes.yaml", "--from", "m.yaml", cwd=folder)
    assert done.stdout == "spring.takes.yaml: written; name it in the manifest: takes: spring.takes.yaml\n"
    before = json.loads(light("plan", "m.yaml", "--json", cwd=folder).stdout)["shots"]
    text = (folder / "m.yaml").read_text().replace("output: out", "output: elsewhere\ntakes: spring.takes.yaml")
    (folder / "m.yaml").write_text(text)
    after = json.loads(light("plan", "m.yaml", "--json", cwd=folder).stdout)["shots"]
    assert {row["name"]: row["seed"] for row in after} == {row["name"]: row["seed"] for row in before}
    assert errors_of(light("takes", "import", cwd=folder)) == ["takes import: must be takes export"]


def test_a_review_is_read_before_rendering(folder: Path, demo: Path) -> None:
    """Something is wrong with the options, so that nothing is rendered; the review has been applied."""
    (folder / "review.csv").write_text("shot,seed,verdict\nada/walk-t01,42,pick\nbob/run-t01,42,reject\n")
    done = light("m.yaml", "--review", "review.csv", "--gangs", "0", cwd=folder)
    assert done.returncode == 2
    assert not (folder / "out" / ".lynx" / "takes.json").exists(), "options are checked first"
    done = light("m.yaml", "--review", "review.csv", "--strict", "--only", "none/*", cwd=folder)
    assert done.returncode == 2
    assert "review.csv: 1 accepted, 1 rerolled" in done.stdout
    printed = light("plan", "m.yaml", "--shots", cwd=folder).stdout
    again = [line for line in without_texts(of_shots(printed)) if "sampling.seed" in line]
    assert [line.split(":")[0] for line in again] == ["render  bob/run-t01"]
