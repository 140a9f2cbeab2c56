"""The output folder: nothing looks done that is not, nothing finished is lost."""

from __future__ import annotations

import json
import os
import resource
import signal
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import lynx_parallel.output.atomic
from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.output.atomic import PROBE_S, part_path
from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import History, Journal
from lynx_parallel.plan.digests import shot_digests
from lynx_parallel.plan.plan import Item, make_plan
from tests.helpers.campaigns import MANIFEST, WEIGHTS, contents, finish, load, sidecar, tree, write

ADA = "ada/walk-t01"
ALL = ("video", "sidecar", "latents")
VIDEO = ("video", "sidecar")


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    write(tmp_path)
    return load(tmp_path)


@pytest.fixture
def output(campaign: Campaign) -> Output:
    """The campaign's output, its first shot finished."""
    finish(campaign, campaign.shots[0])
    return Output(campaign.output)


def first(campaign: Campaign) -> Item:
    return next(i for i in make_plan(campaign, WEIGHTS, today=date(2026, 1, 1)).items if i.shot.name == ADA)


def files(folder: Path) -> dict[str, bytes]:
    return {name: content for name, (content, _) in tree(folder).items()}


def test_where_files_lie(output: Output) -> None:
    assert set(files(output.folder)) == {f"{ADA}.mp4", f"{ADA}.latents.safetensors", f"{ADA}.json"}
    assert output.logs(ADA, 3) == output.folder / ".lynx" / "logs" / "ada" / "walk-t01" / "3"
    assert output.sidecar(ADA)
    assert output.sidecar("ada/run-t01") is None
    assert [name for name, _ in output.sidecars()] == [ADA]
    assert list(Output(output.folder / "nowhere").sidecars()) == []
    assert output.has_files(ADA)
    assert not output.has_files("ada/run-t01")


def test_names_with_dots_and_other_scripts(tmp_path: Path) -> None:
    write(tmp_path)
    pattern = 'name: "{subject}/v1.5 走/{prompt}.final-{take}"\n'
    campaign = load(tmp_path, MANIFEST + pattern)
    for shot in campaign.shots:
        finish(campaign, shot)
    plan = make_plan(campaign, WEIGHTS, today=date(2026, 1, 1))
    assert len(plan.of("done")) == 4
    assert not plan.orphans
    assert (campaign.output / "ada" / "v1.5 走" / "walk.final-1.mp4").exists()


def test_intact(output: Output) -> None:
    record = output.sidecar(ADA)
    assert record
    path = output.path(ADA, "video")
    status, content = path.stat(), path.read_bytes()
    assert output.intact(ADA, record, "video")
    path.write_bytes(content[::-1])
    assert not output.intact(ADA, record, "video")
    os.utime(path, ns=(0, status.st_mtime_ns))
    assert output.intact(ADA, record, "video")
    assert not output.intact(ADA, record, "video", verify=True)
    path.write_bytes(content)
    os.utime(path, ns=(0, 0))
    assert output.intact(ADA, record, "video")
    path.write_bytes(content + b"x")
    assert not output.intact(ADA, record, "video")


def test_a_sidecar_takes_any_text(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path in another encoding, or a narrow locale, must not lose a rendered shot at the last moment."""
    shot, output = campaign.shots[0], Output(campaign.output)
    part = part_path(output.path(ADA, "video"))
    part.parent.mkdir(parents=True)
    part.write_bytes(contents(shot)["video"])
    record = sidecar(shot_digests(campaign, shot, WEIGHTS), {"video": contents(shot)["video"]})
    labels = {"folder": os.fsdecode(b"/data/\xff"), "who": "Ada 走"}
    output.commit(ADA, ("video",), {**record, "labels": labels})
    found = output.sidecar(ADA)
    assert found
    assert found["labels"] == labels
    assert "Ada 走" in output.path(ADA, "sidecar").read_text(encoding="utf-8")


class Crash(BaseException):
    """The process ends here."""


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> list[str]:
    """Lets ``step`` renames happen; the next one is never reached. Returns the names that were moved."""
    moved: list[str] = []
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if len(moved) == step:
            raise Crash
        moved.append(Path(target).name)
        real(source, target)

    monkeypatch.setattr(lynx_parallel.output.atomic.os, "replace", replace)
    return moved


def sweep(output: Output) -> int:
    return output.sweep(History.read(output.journal).attempted)


@pytest.mark.parametrize("step", range(4))
def test_a_crash_while_publishing(campaign: Campaign, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    with monkeypatch.context() as patch:
        moved = crash_at(patch, step)
        if step < 3:
            with pytest.raises(Crash):
                finish(campaign, campaign.shots[0])
        else:
            finish(campaign, campaign.shots[0])
    assert moved == ["walk-t01.latents.safetensors", "walk-t01.mp4", "walk-t01.json"][:step]
    assert first(campaign).action == ("done" if step == 3 else "render")
    Journal(Output(campaign.output).journal).append("attempt", name=ADA)
    sweep(Output(campaign.output))
    assert not list(campaign.output.rglob("*.part"))
    finish(campaign, campaign.shots[0])
    assert first(campaign).action == "done"


@pytest.mark.parametrize("step", range(7))
def test_a_crash_while_replacing(
    tmp_path: Path, campaign: Campaign, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Moving the old three aside, publishing the new three: whatever the moment, both sets exist in the end."""
    shot = campaign.shots[0]
    finish(campaign, shot)
    output = Output(campaign.output)
    old_files = set(files(output.folder).values())
    newer = load(tmp_path, MANIFEST, "sampling.seed=7")
    assert first(newer).stale

    def make(word: str) -> None:
        if first(newer).stale:
            output.supersede(ADA, ALL)
        finish(newer, newer.shots[0], word=word)

    with monkeypatch.context() as patch:
        crash_at(patch, step)
        if step < 6:
            with pytest.raises(Crash):
                make(" new")
        else:
            make(" new")
    # Neither the old settings nor the new ones may find a shot done that is half of each.
    assert first(newer).action == ("done" if step == 6 else "render")
    assert first(campaign).action == "done" if step == 0 else first(campaign).action in ("encode", "render")
    if step < 6:
        make(" new")
    assert first(newer).action == "done"
    assert old_files <= set(files(output.folder).values())
    assert {content for kind, content in contents(shot, " new").items()} <= set(files(output.folder).values())


@pytest.mark.parametrize("step", range(5))
def test_a_crash_while_encoding_again(
    tmp_path: Path, campaign: Campaign, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The video moves aside, the sidecar is copied there; then video and sidecar are published."""
    shot, output = campaign.shots[0], Output(campaign.output)
    finish(campaign, shot)
    old = files(output.folder)
    newer = load(tmp_path, MANIFEST, "video.crf=30")

    def make() -> None:
        assert first(newer).action == "encode"
        output.supersede(ADA, VIDEO)
        video = contents(shot, " at crf 30")["video"]
        part_path(output.path(ADA, "video")).write_bytes(video)
        record = sidecar(shot_digests(newer, newer.shots[0], WEIGHTS), {"video": video})
        outputs = {**record["outputs"], "latents": output.sidecar(ADA)["outputs"]["latents"]}  # type: ignore[index]
        output.commit(ADA, ("video",), {**record, "outputs": outputs})

    with monkeypatch.context() as patch:
        crash_at(patch, step)
        if step < 4:
            with pytest.raises(Crash):
                make()
        else:
            make()
    assert first(newer).action == ("done" if step == 4 else "encode")
    assert first(campaign).action == ("done" if step == 0 else "encode")
    if step < 4:
        make()
    assert first(newer).action == "done"
    assert set(old.values()) <= set(files(output.folder).values())
    assert files(output.folder)[f"{ADA}.latents.safetensors"] == old[f"{ADA}.latents.safetensors"]


def test_nothing_superseded_is_replaced(campaign: Campaign) -> None:
    """The same settings again and again, or two whose digests share eight digits: each set is kept."""
    output, shot = Output(campaign.output), campaign.shots[0]
    for word in ("", " b", " c"):
        finish(campaign, shot, word=word)
        output.supersede(ADA, ALL)
        assert not output.has_files(ADA)
    digest8 = shot_digests(campaign, shot, WEIGHTS).video[:8]
    kept = files(output.private / "superseded")
    for folder, word in ((digest8, ""), (f"{digest8}-2", " b"), (f"{digest8}-3", " c")):
        assert kept[f"{folder}/{ADA}.mp4"] == contents(shot, word)["video"]
        assert kept[f"{folder}/{ADA}.latents.safetensors"] == contents(shot, word)["latents"]
        assert f"{folder}/{ADA}.json" in kept
    assert len(kept) == 9


def test_shots_superseded_together_share_a_folder(tmp_path: Path, campaign: Campaign) -> None:
    output = Output(campaign.output)
    for shot in campaign.shots[:2]:
        finish(campaign, shot)
        output.supersede(shot.name, VIDEO)
        assert output.path(shot.name, "latents").exists()
        assert output.path(shot.name, "sidecar").exists()
        assert not output.path(shot.name, "video").exists()
    assert all("-" not in path.name for path in (output.private / "superseded").iterdir())


def test_superseding_nothing(campaign: Campaign) -> None:
    Output(campaign.output).supersede(ADA, ALL)
    assert not list((campaign.output / ".lynx").rglob("*"))


def test_sweep_takes_our_own_only(output: Output) -> None:
    journal = Journal(output.journal)
    journal.append("run_started", manifest="m.yaml")
    journal.append("attempt", name=ADA, attempt=1)
    journal.append("attempt", name="left/long-ago", attempt=1)
    journal.close()
    ours = [
        f"{ADA}.mp4.1.part", f"{ADA}.latents.safetensors.12.part", f"{ADA}.json.123.part", "left/long-ago.mp4.2.part",
        ".lynx/superseded/01234567/ada/walk-t01.json.77.part", ".lynx/partial/0123abcd.safetensors.77.part",
        ".lynx/faces/ada/id.png.77.part",
    ]  # fmt: skip
    theirs = [
        "foo.part", "film.mp4.1.part", "ada/notes.part", f"{ADA}.part", f"{ADA}.json.part", f"{ADA}.json.old.part",
        f"{ADA}.mp4.part", f"sub/{ADA}.mp4.1.part", "sub/.lynx/walk-t01.mp4.1.part",
    ]  # fmt: skip
    before = files(output.folder)
    for name in ours + theirs:
        path = output.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert sweep(output) == len(ours)
    assert files(output.folder) == {**before, **dict.fromkeys(theirs, b"x")}
    assert sweep(output) == 0
    assert sweep(Output(output.folder / "nowhere")) == 0


def test_journal(tmp_path: Path) -> None:
    path = tmp_path / ".lynx" / "journal.jsonl"
    first_run = Journal(path)
    first_run.append("attempt", name="ada/walk", attempt=1)
    first_run.append("failed", name="ada/läuft 走", reason="line\nbreak " + os.fsdecode(b"\xff"))
    first_run.close()
    with path.open("ab") as file:
        file.write(b'{"time": "2026", "event": "atte')  # the driver was killed here
    second = Journal(path)
    assert path.read_bytes().count(b"\n") == 2
    second.append("attempt", name="bob/walk", attempt=1)
    assert History.read(path).attempted == {"ada/walk", "ada/läuft 走", "bob/walk"}  # on disk before close
    second.close()
    lines = path.read_bytes().splitlines()
    assert len(lines) == 4
    good = [json.loads(line) for line in (*lines[:2], lines[3])]
    assert [line["event"] for line in good] == ["attempt", "failed", "attempt"]
    assert good[1]["reason"] == "line\nbreak \udcff"


@pytest.mark.parametrize("content", [b"", b"\n\n[]\n1\nnull\n{}\n\xff\n" + b"[" * 100_000])
def test_a_journal_of_anything(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(content)
    assert History.read(path).attempted == set()
    journal = Journal(path)
    journal.append("attempt", name="a")
    journal.close()
    assert History.read(path).attempted == {"a"}
    assert History.read(tmp_path / "none").attempted == set()


def test_a_full_disk_delays_the_journal_and_fails_nothing(tmp_path: Path) -> None:
    """The file size limit stands for a full disk: a write stops in the middle, and the next one raises."""
    journal = Journal(tmp_path / "journal.jsonl")
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1][1]))
        for number in range(3):
            journal.append("done", name=f"shot {number}", video=str(number))
        assert (tmp_path / "journal.jsonl").stat().st_size == 100
        assert journal.unwritten
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[1])
        signal.signal(signal.SIGXFSZ, before[0])
    journal.append("done", name="shot 3", video="3")
    assert not journal.unwritten
    records = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert [record["video"] for record in records] == ["0", "1", "2", "3"]
    assert History.read(tmp_path / "journal.jsonl").done == {"0", "1", "2", "3"}


def test_a_probe_is_there_for_a_while(campaign: Campaign) -> None:
    output = Output(campaign.output)
    with output.probe() as probe:
        assert probe.exists()
    assert not probe.exists()
    probe.touch()  # a driver was killed, or is about to take the folder's lock
    sweep(output)
    assert probe.exists()
    os.utime(probe, (0, probe.stat().st_mtime - PROBE_S - 5))
    sweep(output)
    assert not probe.exists()
