"""lynx-render prune: lists first, removes with --yes, and keeps what the next run uses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lynx_parallel.cli.load import load
from lynx_parallel.output.folder import Output
from lynx_parallel.output.lock import Lock
from lynx_parallel.output.shard import FolderLock, Shard
from tests.helpers.campaigns import draw, finish, tree, write
from tests.helpers.light_command import errors_of, light, refused


@pytest.fixture
def folder(tmp_path: Path, demo: Path) -> Path:
    """Three of four shots are finished. One state is used by the next run, the other by none."""
    write(tmp_path)
    draw(tmp_path)
    loaded = load(str(tmp_path / "m.yaml"), None, None, False)
    output = Output(loaded.campaign.output)
    *done, last = loaded.campaign.shots
    for shot in done:
        finish(loaded.campaign, shot, weights=loaded.parts[0].digests)
    [used] = [item for item in loaded.replan().items if item.shot.name == last.name]
    for digest in (used.digests.resume, "0" * 64):
        path = output.resume_state(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"state")
    for name in ("superseded/0a1b2c3d/ada/walk-t01.mp4", f"logs/{done[0].name}/1/rank0.log"):
        path = output.private / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345678")
    return tmp_path


def states(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "out" / ".lynx" / "partial").iterdir()}


def test_it_lists_and_then_removes(folder: Path) -> None:
    before = tree(folder / "out")
    listed = light("prune", "m.yaml", cwd=folder)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert listed.stdout.splitlines() == [
        "superseded files: 1 path, 8 B", "resume states that no run would use: 1 path, 5 B",
        "logs of finished shots: 1 path, 8 B", "Nothing was removed. Add --yes to remove 3 paths, 21 B",
    ]  # fmt: skip
    assert tree(folder / "out") == before
    used = states(folder) - {"0" * 64}
    done = light("prune", "m.yaml", "--yes", cwd=folder)
    assert done.stdout.splitlines()[-1] == "removed 3 paths, 21 B"
    assert states(folder) == used
    after = tree(folder / "out")
    assert {name for name in before if not name.startswith(".lynx/")} <= set(after)
    assert all(before[name] == after[name] for name in after)
    assert light("prune", "m.yaml", cwd=folder).stdout == "out: nothing to remove\n"


def test_an_output_folder_without_its_manifest_keeps_the_states(folder: Path) -> None:
    found = light("prune", "out", "--yes", cwd=folder)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("resume states are kept: the last run cannot be read any more; name the manifest\n")
    assert len(states(folder)) == 2
    assert not (folder / "out" / ".lynx" / "superseded" / "0a1b2c3d").exists()


def test_by_age_and_by_size(folder: Path) -> None:
    old = folder / "out" / ".lynx" / "superseded" / "0a1b2c3d" / "ada" / "walk-t01.mp4"
    os.utime(old, (1_000_000, 1_000_000))
    found = json.loads(light("prune", "m.yaml", "--older-than", "30d", "--json", cwd=folder).stdout)
    assert [row["path"] for row in found["files"]] == [str(old)]
    assert (found["removed"], found["exit_code"]) == (False, 0)
    kept = light("prune", "m.yaml", "--keep", "1MB", cwd=folder)
    assert kept.stdout == "out: nothing to remove\n"


@pytest.mark.parametrize("shard", [None, Shard(1, 2)], ids=str)
def test_not_while_a_driver_is_at_work(folder: Path, shard: Shard | None) -> None:
    before = tree(folder / "out")
    private = folder / "out" / ".lynx"
    lock: Lock = FolderLock(private, shard)
    with lock:
        assert light("prune", "m.yaml", cwd=folder).returncode == 0
        run = light("prune", "m.yaml", "--yes", cwd=folder)
        assert run.returncode == 3
        [line] = errors_of(run)
        assert "another driver is at work here" in line
    after = {name: content for name, content in tree(folder / "out").items() if "shards" not in name}
    assert after == before


def test_wrong_limits(folder: Path) -> None:
    assert refused("prune", "m.yaml", "--older-than", "soon", "--keep", "50", cwd=folder) == [
        "--older-than soon: must be days, hours or minutes: 30d, 12h, 90m",
        "--keep 50: must be a size such as 500MB, 50GB or 1.5TB",
    ]
