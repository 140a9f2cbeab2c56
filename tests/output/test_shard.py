"""Locks of shards, and what they share."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from lynx_parallel.errors import ClusterError, InputErrors
from lynx_parallel.inputs.shard_option import read_shard
from lynx_parallel.output.folder import Output
from lynx_parallel.output.found_drivers import find_drivers
from lynx_parallel.output.journal import History, Journal
from lynx_parallel.output.lock import STALE_LOCK_S
from lynx_parallel.output.shard import FolderLock, Shard
from lynx_parallel.output.shot_states import shot_states


@pytest.mark.parametrize(
    ("held", "wanted", "words"),
    [
        (Shard(1, 2), Shard(1, 2), "out: another driver is at work here: process"),
        (Shard(1, 2), None, "on shard 1/2: process"),
        (None, Shard(1, 2), "on the whole campaign: process"),
        (Shard(1, 4), Shard(1, 2), "on shard 1/4 of another division or manifest: process"),
        (Shard(2, 4), Shard(1, 2), "on shard 2/4 of another division or manifest: process"),
    ],
    ids=str,
)
def test_two_drivers_of_the_same_shots(tmp_path: Path, held: Shard | None, wanted: Shard | None, words: str) -> None:
    with FolderLock(tmp_path / "out" / ".lynx", held, "shots"):
        with pytest.raises(ClusterError, match=re.escape(words)):
            FolderLock(tmp_path / "out" / ".lynx", wanted, "shots").refuse()
        with (
            pytest.raises(ClusterError, match=re.escape(words)),
            FolderLock(tmp_path / "out" / ".lynx", wanted, "shots"),
        ):
            pass
    with FolderLock(tmp_path / "out" / ".lynx", wanted, "shots") as lock:
        assert lock.alone
    assert not list((tmp_path / "out" / ".lynx").rglob("lock"))


def test_shards_of_one_division_side_by_side(tmp_path: Path) -> None:
    one, two = (FolderLock(tmp_path / ".lynx", Shard(number, 2), "shots") for number in (1, 2))
    with one:
        two.refuse()
        with two:
            assert not one.alone
            assert not two.alone
        assert one.alone


def test_a_manifest_with_other_shots_divides_otherwise(tmp_path: Path) -> None:
    with (
        FolderLock(tmp_path / ".lynx", Shard(1, 2), "shots"),
        pytest.raises(ClusterError, match="shard 1/2 of another division or manifest"),
        FolderLock(tmp_path / ".lynx", Shard(2, 2), "others"),
    ):
        pass


def test_a_dead_driver_excludes_nobody(tmp_path: Path) -> None:
    lock = tmp_path / ".lynx" / "shards" / "1-of-2" / "lock"
    lock.parent.mkdir(parents=True)
    lock.write_text(json.dumps({"host": "far", "pid": 1, "started": "1"}))
    with pytest.raises(ClusterError, match="process 1 on far"):
        FolderLock(tmp_path / ".lynx").refuse()
    os.utime(lock, (0, lock.stat().st_mtime - STALE_LOCK_S - 5))
    with FolderLock(tmp_path / ".lynx") as whole:
        assert whole.alone


def test_a_sweep_leaves_what_may_be_another_shard_s(tmp_path: Path) -> None:
    output = Output(tmp_path, Shard(1, 2))
    parts = ["ada/walk.mp4.1.part", "bob/walk.mp4.1.part", ".lynx/partial/x.safetensors.1.part", ".lynx/probe-1"]
    for name in parts:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.utime(tmp_path / ".lynx/probe-1", (0, 0))
    assert output.sweep({"ada/walk"}, alone=False) == 1
    assert not (tmp_path / parts[0]).exists()
    assert all((tmp_path / name).exists() for name in parts[1:])
    assert output.sweep({"ada/walk", "bob/walk"}) == 3


def test_all_journals_count(tmp_path: Path) -> None:
    whole, one, two = Output(tmp_path), Output(tmp_path, Shard(1, 2)), Output(tmp_path, Shard(2, 2))
    for output, name in ((one, "a"), (two, "b"), (whole, "c")):
        journal = Journal(output.journal)
        journal.append("done", name=name, video=name * 8)
        journal.close()
    assert len(set(whole.journals)) == 3
    assert History.read(*one.journals).done == {"a" * 8, "b" * 8, "c" * 8}
    assert [str(driver.shard) for driver in find_drivers(whole)] == ["None", "1/2", "2/2"]


def test_the_last_result_counts_in_whichever_journal(tmp_path: Path) -> None:
    whole, shard = Output(tmp_path), Output(tmp_path, Shard(1, 2))
    for output, event, time in ((shard, "failed", "2026-02-01T00:00:00"), (whole, "blocked", "2026-01-01T00:00:00")):
        output.journal.parent.mkdir(parents=True, exist_ok=True)
        record = {"time": time, "event": event, "name": "a", "reason": event}
        output.journal.write_text(json.dumps(record) + "\n")
    [state] = shot_states(whole, ["a"])
    assert state.state == "failed"


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "1/2/3", "-1/2", "1 / 2", ""])
def test_wrong_shards(text: str) -> None:
    with pytest.raises(InputErrors, match="must be K/N with K from 1 to N"):
        read_shard(text)


def test_right_shards() -> None:
    assert read_shard(None) is None
    assert [read_shard(text) for text in ("1/1", "2/8")] == [Shard(1, 1), Shard(2, 8)]
