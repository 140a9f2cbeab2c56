"""What an output folder no longer needs, and its removal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lynx_parallel.output.candidates import candidate_name
from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import Journal
from lynx_parallel.output.prune import Entry, choose, find_prunable, prune, resume_states
from tests.helpers.campaigns import finish, load, tree, write

ADA, BOB = "ada/walk-t01", "bob/walk-t01"
USED, ABANDONED = "1" * 64, "2" * 64


def put(path: Path, size: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def kinds(entries: list[Entry]) -> dict[str, list[str]]:
    """Names of the files by kind."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        found.setdefault(entry.kind, []).extend(path.name for path in entry.files)
    return found


@pytest.fixture
def output(tmp_path: Path) -> Output:
    """One shot is done and one is not. Something of each kind can be removed, and much must stay."""
    write(tmp_path)
    campaign = load(tmp_path)
    finish(campaign, next(shot for shot in campaign.shots if shot.name == ADA))
    output = Output(campaign.output)
    for suffix in (".json", ".latents.safetensors", ".mp4"):
        put(output.private / "superseded" / "12345678" / (ADA + suffix), 10)
    put(output.private / "damaged" / "ada" / "walk-t01.latents.safetensors", 20)
    for digest in (USED, ABANDONED):
        put(output.resume_state(digest), 30)
    for name in (ADA, BOB):
        put(output.logs(name, 1) / "rank0.log", 5)
    for name in (ADA, BOB):
        for suffix in (".json", ".mp4"):
            put(output.folder / (candidate_name(name, 7) + suffix), 7)
        put(output.audition(name))
    put(output.private / "partial" / "mine.safetensors")
    put(output.private / "logs" / "ray" / "2026.log")
    put(output.private / "latents" / f"{BOB}.latents.safetensors")
    put(output.private / "manifests" / "2026" / "run.json")
    put(output.private / "prompts" / "a.safetensors")
    put(output.private / "takes.json")
    put(output.poster(ADA))
    return output


def test_what_can_be_removed(output: Output) -> None:
    before = tree(output.folder)
    entries = find_prunable(output, {USED})
    assert kinds(entries) == {
        "superseded": ["walk-t01.latents.safetensors", "walk-t01.mp4", "walk-t01.json"],  # the sidecar last
        "damaged": ["walk-t01.latents.safetensors"],
        "states": [f"{ABANDONED}.safetensors"],
        "logs": ["rank0.log"],
        "candidates": ["s7.mp4", "s7.json"],  # of the finished shot alone
    }
    assert sorted(entry.size for entry in entries) == [5, 14, 20, 30, 30]
    assert tree(output.folder) == before


def test_removal_leaves_everything_else(output: Output) -> None:
    before, entries = tree(output.folder), find_prunable(output, {USED})
    gone = {str(path.relative_to(output.folder)) for entry in entries for path in entry.files}
    removed, errors = prune(output, entries)
    assert (removed, errors) == (entries, {})
    assert tree(output.folder) == {name: value for name, value in before.items() if name not in gone}
    assert list((output.private / "superseded").iterdir()) == []
    assert not (output.private / "logs" / ADA).exists()
    assert find_prunable(output, {USED}) == []
    assert prune(output, entries) == (entries, {})  # as after a kill


def test_states_stay_if_it_is_not_known_which_are_in_use(output: Output) -> None:
    assert "states" not in kinds(find_prunable(output, None))
    assert set(resume_states(output)) == {USED, ABANDONED}


def test_logs_stay_where_the_last_attempt_did_not_succeed(output: Output) -> None:
    journal = Journal(output.journal)
    journal.append("done", name=ADA, video="0")
    assert "logs" in kinds(find_prunable(output, None))
    journal.append("failed", name=ADA, reason="no room")
    assert "logs" not in kinds(find_prunable(output, None))
    journal.close()


def entry(name: str, written: float, size: int) -> Entry:
    return Entry("damaged", (Path(name),), size, written)


def test_by_age_and_by_size() -> None:
    entries = [entry("old", 10, 40), entry("new", 30, 40), entry("middle", 20, 40)]

    def chosen(before: float | None = None, keep: int | None = None) -> list[str]:
        return [str(one.files[0]) for one in choose(entries, before=before, keep=keep)]

    assert chosen() == ["new", "middle", "old"]
    assert chosen(before=20) == ["middle", "old"]
    assert chosen(keep=80) == ["old"]
    assert chosen(keep=79) == ["middle", "old"]
    assert chosen(keep=0) == ["new", "middle", "old"]
    assert chosen(before=15, keep=40) == ["old"]
    assert chosen(before=5, keep=40) == []


def test_the_newest_file_gives_the_age(output: Output) -> None:
    for number, path in enumerate(sorted((output.private / "superseded").rglob("*.*"))):
        os.utime(path, (1000 + number, 1000 + number))
    assert [one.written for one in find_prunable(output, None) if one.kind == "superseded"] == [1002]


def test_links_are_not_followed(output: Output, tmp_path: Path) -> None:
    others = put(tmp_path / "others" / "video.mp4", 1000).parent
    (output.private / "superseded" / "12345678" / "folder").symlink_to(others)
    (output.private / "superseded" / "12345678" / "file.mp4").symlink_to(others / "video.mp4")
    (output.private / "logs" / ADA / "2").symlink_to(others)
    entries = find_prunable(output, None)
    assert sum(one.size for one in entries) < 1000
    _, errors = prune(output, entries)
    assert errors == {}
    assert (others / "video.mp4").stat().st_size == 1000
    assert list((output.private / "superseded").iterdir()) == []


@pytest.mark.parametrize("kind", ["superseded", "damaged", "partial", "logs"])
def test_a_folder_that_is_a_link_is_not_entered(output: Output, tmp_path: Path, kind: str) -> None:
    (output.private / kind).rename(tmp_path / "elsewhere")
    (output.private / kind).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "empty").mkdir()
    entries = find_prunable(output, set())
    assert {"partial": "states"}.get(kind, kind) not in kinds(entries)
    prune(output, entries)
    assert (tmp_path / "elsewhere" / "empty").is_dir()


def test_names_of_odd_bytes(output: Output) -> None:
    odd = put(output.private / "damaged" / os.fsdecode(b"a\xff\nb.json"))
    entries = find_prunable(output, None)
    assert odd in {path for one in entries for path in one.files}
    assert prune(output, entries)[1] == {}
    assert not odd.exists()


def test_a_file_that_cannot_be_removed_keeps_its_sidecar(output: Output) -> None:
    entries = find_prunable(output, set())
    video = next(path for one in entries for path in one.files if path.name.endswith(".mp4"))
    video.unlink()
    put(video / "in-the-way")  # a folder cannot be unlinked
    removed, errors = prune(output, entries)
    assert list(errors) == [video]
    assert video.with_suffix(".json").exists()
    assert kinds(removed).keys() == {"damaged", "states", "logs", "candidates"}


def test_a_folder_without_anything(tmp_path: Path) -> None:
    assert find_prunable(Output(tmp_path / "none"), set()) == []
