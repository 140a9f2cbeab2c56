"""What can be removed from an output folder, and what is chosen of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lynx_parallel.output.folder import Output
from lynx_parallel.output.prune import Prunable, choose, find_prunable, remove
from tests.helpers.campaigns import tree

FILES = {
    "superseded/0a1b2c3d/ada/walk-t01.mp4": 30,
    "superseded/0a1b2c3d/ada/walk-t01.json": 3,
    "damaged/ada/run-t01.latents.safetensors": 20,
    "partial/used.safetensors": 7,
    "partial/old.safetensors": 8,
    "logs/ada/walk-t01/1/rank0.log": 2,
    "logs/ada/walk-t01/1/rank1.log": 2,
    "logs/bob/walk-t01/1/rank0.log": 5,
    "logs/ray/2026.log": 1,
    "journal.jsonl": 1,
    "takes.json": 1,
}


@pytest.fixture
def output(tmp_path: Path) -> Output:
    for age, (name, size) in enumerate(FILES.items()):
        path = tmp_path / "out" / ".lynx" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
        os.utime(path, (1000 - age, 1000 - age))
    (tmp_path / "out" / "ada").mkdir()
    (tmp_path / "out" / "ada" / "walk-t01.mp4").write_bytes(b"video")
    return Output(tmp_path / "out")


def found(output: Output) -> list[Prunable]:
    return find_prunable(output, {output.resume_state("old")}, ["ada/walk-t01"])


def names(output: Output, chosen: list[Prunable]) -> set[str]:
    return {str(one.path.relative_to(output.private)) for one in chosen}


def test_what_is_found(output: Output) -> None:
    before = tree(output.folder)
    assert names(output, found(output)) == {
        "superseded/0a1b2c3d/ada/walk-t01.mp4", "superseded/0a1b2c3d/ada/walk-t01.json",
        "damaged/ada/run-t01.latents.safetensors", "partial/old.safetensors", "logs/ada/walk-t01/1",
    }  # fmt: skip
    assert {one.kind: one.size for one in found(output)} | {"superseded": 0} == {
        "superseded": 0, "damaged": 20, "state": 8, "log": 4
    }  # fmt: skip
    assert tree(output.folder) == before


def test_by_age(output: Output) -> None:
    old = choose(found(output), before=998.5)
    assert "superseded/0a1b2c3d/ada/walk-t01.mp4" not in names(output, old)
    assert "damaged/ada/run-t01.latents.safetensors" in names(output, old)


def test_the_newest_stay_up_to_a_size() -> None:
    every = [Prunable("damaged", Path(str(age)), size, float(age)) for age, size in ((3, 10), (2, 30), (1, 5))]
    assert [one.path.name for one in choose(every, keep=40)] == ["1"]
    assert [one.path.name for one in choose(every, keep=39)] == ["1", "2"], "nothing older than what does not fit stays"
    assert [one.path.name for one in choose(every, keep=0)] == ["1", "2", "3"]
    assert choose(every, keep=45) == []
    assert [one.path.name for one in choose(every)] == ["1", "2", "3"]


def test_removal_leaves_the_rest_and_no_empty_folder(output: Output) -> None:
    assert remove(output, found(output)) == {}
    left = {str(path.relative_to(output.private)) for path in output.private.rglob("*")}
    assert left == {
        "partial", "partial/used.safetensors", "logs", "logs/bob", "logs/bob/walk-t01", "logs/bob/walk-t01/1",
        "logs/bob/walk-t01/1/rank0.log", "logs/ray", "logs/ray/2026.log", "journal.jsonl", "takes.json",
    }  # fmt: skip
    assert (output.folder / "ada" / "walk-t01.mp4").exists()
    assert found(output) == []


def test_a_path_that_cannot_be_removed_is_reported(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    removed = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".mp4":
            raise PermissionError(1, "Operation not permitted")
        removed(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    left = remove(output, found(output))
    assert {path.name: reason for path, reason in left.items()} == {"walk-t01.mp4": "Operation not permitted"}
    assert names(output, found(output)) == {"superseded/0a1b2c3d/ada/walk-t01.mp4"}
    monkeypatch.undo()
    assert remove(output, found(output)) == {}, "run again"


def test_links_are_not_followed(output: Output, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "picture.jpg").write_bytes(b"mine")
    (output.private / "superseded" / "link").symlink_to(tmp_path / "mine")
    (output.private / "superseded" / "file").symlink_to(tmp_path / "mine" / "picture.jpg")
    remove(output, found(output))
    assert (tmp_path / "mine" / "picture.jpg").read_bytes() == b"mine"
    assert not (output.private / "superseded" / "file").is_symlink()
