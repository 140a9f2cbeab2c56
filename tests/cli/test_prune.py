"""``lynx-render prune`` as a user meets it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from lynx_parallel.cli.load import load_parts
from lynx_parallel.engine.record import write_record
from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.inputs.records import Request
from lynx_parallel.output.folder import Output
from lynx_parallel.output.shard import FolderLock, Shard
from tests.helpers.campaigns import MANIFEST, draw, finish, load, tree, write
from tests.helpers.light_command import errors_of, light, refused
from tests.helpers.planned import parts_of

ADA, BOB = "ada/walk-t01", "bob/walk-t01"
ABANDONED = "2" * 64
DAY = 86400


def put(path: Path, size: int = 1, days: float = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (time.time() - days * DAY,) * 2)
    return path


def record(campaign: Campaign, *set_: str) -> None:
    folder = Output(campaign.output).record("2026-11-27T060000")
    write_record(folder, campaign, parts_of(campaign), Request(set=set_), "2026-11-27T06:00:00")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One shot is done by a recorded run. Two superseded shots and a damaged file are 40, 10 and 5 days old."""
    write(tmp_path)
    draw(tmp_path)
    campaign = load(tmp_path)
    record(campaign)
    finish(campaign, next(shot for shot in campaign.shots if shot.name == ADA))
    private = Output(campaign.output).private
    for digits, days in (("11111111", 40), ("22222222", 10)):
        put(private / "superseded" / digits / f"{ADA}.mp4", 1000, days)
        put(private / "superseded" / digits / f"{ADA}.json", 100, days)
    put(private / "damaged" / "ada" / "walk-t01.latents.safetensors", 500, 5)
    return tmp_path


def states(folder: Path) -> tuple[Path, Path]:
    """Makes a resume state that the next run would use, and one that it would not."""
    output = Output(folder / "out")
    items = load_parts(load(folder), download=False).replan().items
    digest = next(item.digests.resume for item in items if item.shot.name == BOB)
    return put(output.resume_state(digest)), put(output.resume_state(ABANDONED))


def test_listing_changes_nothing(folder: Path) -> None:
    before = tree(folder)
    done = light("prune", "out", "--files", cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "out: superseded files: 4 files, 2.2 kB, 10 days to 40 days old"
    assert f"  out/.lynx/superseded/11111111/{ADA}.mp4" in lines
    assert "out: damaged files: 1 file, 500 B, 5 days old" in lines
    assert lines[-1] == "Nothing was removed. Add --yes to remove 5 files, 2.7 kB"
    assert tree(folder) == before


def test_yes_removes_it_and_a_second_time_nothing(folder: Path) -> None:
    done = light("prune", "out", "--yes", cwd=folder)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "removed 5 files, 2.7 kB"), done.stderr
    private = folder / "out" / ".lynx"
    assert [list((private / kind).iterdir()) for kind in ("superseded", "damaged")] == [[], []]
    assert not (private / "lock").exists()
    assert (folder / "out" / f"{ADA}.mp4").exists()
    again = light("prune", "out", "--yes", cwd=folder)
    assert again.stdout.splitlines() == ["out: nothing to remove", "removed 0 files, 0 B"]


def test_by_age_and_by_size(folder: Path) -> None:
    by_age = light("prune", "out", "--older-than", "30d", "--yes", cwd=folder)
    assert by_age.stdout.splitlines()[-1] == "removed 2 files, 1.1 kB"
    assert not (folder / "out" / ".lynx" / "superseded" / "11111111").exists()
    by_size = light("prune", "out", "--keep", "500B", "--yes", cwd=folder)
    assert by_size.stdout.splitlines()[-1] == "removed 2 files, 1.1 kB"
    assert (folder / "out" / ".lynx" / "damaged" / "ada" / "walk-t01.latents.safetensors").exists()


@pytest.mark.parametrize("target", ["m.yaml", "out"])
def test_a_state_in_use_is_kept(folder: Path, demo: Path, target: str) -> None:
    used, abandoned = states(folder)
    done = light("prune", target, "--yes", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "out: abandoned resume states: 1 file, 1 B, " in done.stdout
    assert (used.exists(), abandoned.exists()) == (True, False)


def test_a_state_of_the_last_run_with_other_settings_is_kept(folder: Path, demo: Path) -> None:
    changed = "sampling.seed=7"
    record(load(folder, MANIFEST, changed), changed)
    digest = load_parts(load(folder, MANIFEST, changed), download=False).replan().items[-1].digests.resume
    used, abandoned = put(Output(folder / "out").resume_state(digest)), states(folder)[1]
    assert light("prune", "m.yaml", "--yes", cwd=folder).returncode == 0
    assert (used.exists(), abandoned.exists()) == (True, False)


def test_states_are_kept_if_no_plan_can_be_made(folder: Path, demo: Path) -> None:
    both = states(folder)
    (folder / "ada.jpg").unlink()
    done = light("prune", "out", "--yes", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "out: all resume states are kept: the manifest of the last run cannot be read any more" in done.stdout
    assert all(path.exists() for path in both)
    assert not (folder / "out" / ".lynx" / "superseded" / "11111111").exists()


def test_states_are_kept_if_weights_are_missing(folder: Path, demo: Path) -> None:
    kept = put(Output(folder / "out").resume_state(ABANDONED))
    (folder / "full.yaml").write_text(
        (folder / "full.yaml").read_text().replace("demo:tiny", "Wan-AI/Wan2.1-T2V-14B-Diffusers")
    )
    done = light("prune", "m.yaml", "--yes", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "out: all resume states are kept: weights are missing on this machine" in done.stdout
    assert kept.exists()


@pytest.mark.parametrize("shard", [None, Shard(1, 2)])
def test_it_refuses_while_a_run_is_at_work(folder: Path, shard: Shard | None) -> None:
    with FolderLock(folder / "out" / ".lynx", shard):
        before = tree(folder)
        done = light("prune", "out", "--yes", cwd=folder)
        assert (done.returncode, done.stdout) == (3, "")
        assert "another driver is at work here" in errors_of(done)[0]
        assert light("prune", "out", cwd=folder).returncode == 0  # it lists
        assert {**tree(folder), **before} == tree(folder)
        assert tree(folder).keys() == before.keys()


def test_wrong_options_are_reported_together(folder: Path) -> None:
    assert refused("prune", "out", "--older-than", "30", "--keep", "much", cwd=folder) == [
        "--older-than 30: must be an age such as 30d, 12h or 1d12h",
        "--keep much: must be a size such as 500MB, 50GB or 1TB",
    ]


def test_json(folder: Path) -> None:
    odd = put(folder / "out" / ".lynx" / "damaged" / os.fsdecode(b"a\xff\nb"))
    done = light("prune", "out", "--json", "--files", cwd=folder)
    result = json.loads(done.stdout)
    assert result["removed"] == {"files": 0, "bytes": 0}
    assert result["prunable"]["superseded"]["bytes"] == 2200
    assert str(odd) in result["prunable"]["damaged"]["files"]
    assert result["prunable"]["states"] == {"files": [], "bytes": 0, "oldest": None}
    assert r"damaged/a\udcff\nb" in done.stderr
    assert json.loads(light("prune", "out", "--json", "--yes", cwd=folder).stdout)["removed"]["files"] == 6
