"""What is left to do, and why."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import lynx_parallel.output.folder
import lynx_parallel.plan.digests
from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.output.atomic import part_path
from lynx_parallel.output.folder import Output
from lynx_parallel.plan.digests import shot_digests
from lynx_parallel.plan.plan import Known, in_order, make_plan
from tests.helpers.campaigns import MANIFEST, WEIGHTS, edit_sidecar, finish, load, write
from tests.helpers.planned import ADA, TODAY, planned


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def ada(campaign: Campaign, **options: Any) -> tuple[str, str, bool]:
    """(action, reason, stale) of the first shot."""
    item = next(item for item in planned(campaign, **options).items if item.shot.name == ADA)
    return item.action, item.reason, item.stale


@pytest.fixture
def done(folder: Path) -> Campaign:
    """All four shots finished."""
    campaign = load(folder)
    for shot in campaign.shots:
        finish(campaign, shot)
    return campaign


def test_nothing_made_yet(folder: Path) -> None:
    plan = planned(load(folder))
    assert [(item.action, item.reason, item.stale) for item in plan.items] == [("render", "", False)] * 4
    assert not plan.orphans
    assert not (folder / "out").exists()


def test_all_done(done: Campaign) -> None:
    plan = planned(done)
    assert Counter(item.action for item in plan.items) == {"done": 4}
    assert len(plan.of("done")) == 4
    assert not plan.of("render", "encode", "blocked")
    assert planned(done, verify=True) == plan


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["video.crf=30"], ("encode", "changed: video.crf", True)),
        (["sampling.fps=24", "video.codec=h265"], ("encode", "changed: sampling.fps, video.codec", True)),
        (["sampling.seed=7"], ("render", "changed: sampling.seed", True)),
        (["sampling.seed=7", "video.crf=30"], ("render", "changed: sampling.seed", True)),
        (["save_latents=false"], ("done", "", False)),
    ],
)
def test_changed_settings(folder: Path, done: Campaign, overrides: list[str], expected: tuple[str, str, bool]) -> None:
    assert ada(load(folder, MANIFEST, *overrides)) == expected


def test_changed_weights(done: Campaign) -> None:
    assert ada(done, weights={**WEIGHTS, "id": "0" * 64}) == ("render", "changed: weights", True)


@pytest.mark.parametrize(
    ("kind", "damage", "verify", "expected"),
    [
        ("video", "missing", False, ("encode", "video missing or damaged", True)),
        ("video", "longer", False, ("encode", "video missing or damaged", True)),
        ("video", "other", False, ("encode", "video missing or damaged", True)),
        ("video", "touched", False, ("done", "", False)),
        ("video", "hidden", False, ("done", "", False)),  # same size, same mtime
        ("video", "hidden", True, ("encode", "video missing or damaged", True)),
        ("video", "folder", False, ("encode", "video missing or damaged", True)),
        ("latents", "missing", False, ("render", "latents missing or damaged", True)),
        ("latents", "other", False, ("render", "latents missing or damaged", True)),
        ("latents", "touched", False, ("done", "", False)),
        ("latents", "hidden", False, ("done", "", False)),
        ("latents", "hidden", True, ("render", "latents missing or damaged", True)),
    ],
)
def test_damaged_files(done: Campaign, kind: str, damage: str, verify: bool, expected: tuple[str, str, bool]) -> None:
    hurt(Output(done.output).path(ADA, kind), damage)
    assert ada(done, verify=verify) == expected


def hurt(path: Path, damage: str) -> None:
    content, status = path.read_bytes(), path.stat()
    match damage:
        case "missing":
            path.unlink()
        case "folder":
            path.unlink()
            path.mkdir()
        case "longer":
            path.write_bytes(content + b"x")
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        case "touched":
            os.utime(path, ns=(1, 1))
        case "other" | "hidden":
            path.write_bytes(content[::-1])
            moved = 0 if damage == "hidden" else 10**9
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + moved))


def test_without_saved_latents(folder: Path) -> None:
    campaign = load(folder, MANIFEST, "save_latents=false")
    finish(campaign, campaign.shots[0], kinds=("video",))
    assert ada(campaign) == ("done", "", False)
    assert ada(load(folder)) == ("render", "changed: save_latents", True)
    again = load(folder, MANIFEST, "save_latents=false", "video.crf=30")
    assert ada(again) == ("render", "changed: video.crf", True)
    Output(campaign.output).path(ADA, "video").unlink()
    assert ada(campaign) == ("render", "video missing or damaged", True)


def test_latents_saved_earlier_are_used(folder: Path, done: Campaign) -> None:
    off = ("save_latents=false",)
    assert ada(load(folder, MANIFEST, *off, "video.crf=30")) == ("encode", "changed: video.crf", True)
    Output(done.output).path(ADA, "latents").unlink()
    assert ada(load(folder, MANIFEST, *off)) == ("done", "", False)


def test_files_that_cannot_be_read_are_reported_together(folder: Path) -> None:
    campaign = load(folder)
    for name in ("ada.npy", "bob.jpg"):
        (folder / name).unlink()
    with pytest.raises(InputErrors) as caught:
        make_plan(campaign, WEIGHTS, today=TODAY)
    assert [line.partition(": ")[2] for line in caught.value.lines] == ["No such file or directory"] * 2
    assert [line.partition(": ")[0].rpartition("/")[2] for line in caught.value.lines] == ["ada.npy", "bob.jpg"]


def test_pictures_block_only_what_needs_them(folder: Path, done: Campaign) -> None:
    known = Known(WEIGHTS, unreadable={"ada": "ada.jpg: not a picture"})
    assert ada(done, weights=known) == ("done", "", False)
    assert ada(load(folder, MANIFEST, "video.crf=30"), weights=known) == ("encode", "changed: video.crf", True)
    assert ada(load(folder, MANIFEST, "sampling.seed=7"), weights=known) == (
        "blocked", "ada.jpg: not a picture", False,
    )  # fmt: skip
    unknown = Known({}, all_weights=False, unreadable={"ada": "ada.jpg: not a picture"})
    assert ada(done, weights=unknown)[0] == "blocked"


def test_without_weights(folder: Path, done: Campaign) -> None:
    """Other changes are reported, and nothing is reported as done."""
    known = Known({}, all_weights=False)
    assert ada(done, weights=known) == ("unknown", "finished; whether with these weights is not known", False)
    assert ada(load(folder, MANIFEST, "video.crf=30"), weights=known) == ("unknown", "changed: video.crf", True)
    hurt(Output(done.output).path(ADA, "latents"), "missing")
    assert ada(done, weights=known) == ("unknown", "latents missing or damaged", True)
    assert ada(load(folder, MANIFEST, "save_latents=false"), weights=known)[1].startswith("finished")
    plan = planned(done, weights=known)
    assert str(plan) == "4 shots: 0 to render, 0 to encode, 0 done, 0 blocked, 4 unknown"


@pytest.mark.parametrize(("today", "action"), [(date(2027, 1, 31), "render"), (date(2027, 2, 1), "blocked")])
def test_consent(folder: Path, today: date, action: str) -> None:
    campaign = load(folder)
    reason = "consent form-1 expired on 2027-01-31" if action == "blocked" else ""
    assert ada(campaign, today=today) == (action, reason, False)
    others = {item.action for item in planned(campaign, today=today).items if item.shot.subject.id == "bob"}
    assert others == {"render"}
    finish(campaign, campaign.shots[0])
    assert ada(campaign, today=today)[0] == ("blocked" if action == "blocked" else "done")


def test_order(folder: Path) -> None:
    shots = """\
shots:
  - {subject: bob, prompt: walk}
  - {subject: ada, prompt: walk}
  - {subject: bob, prompt: run, takes: 2}
  - {subject: ada, prompt: run, priority: 5}
  - {subject: bob, prompt: run, seeds: [7], priority: 5}
  - {subject: ada, prompt: run, seeds: [7], priority: -1}
"""
    campaign = load(folder, MANIFEST + shots)
    assert [(shot.priority, shot.id) for shot in in_order(campaign.shots)] == [
        (5, "bob/run/3"),
        (5, "ada/run/1"),
        (0, "bob/walk/1"),
        (0, "bob/run/1"),
        (0, "bob/run/2"),
        (0, "ada/walk/1"),
        (-1, "ada/run/2"),
    ]
    assert [item.shot for item in planned(campaign).items] == in_order(campaign.shots)


def test_orphans(folder: Path, done: Campaign) -> None:
    fewer = load(folder, MANIFEST.replace(", run: 'A {person} runs.'", ""))
    assert planned(fewer).orphans == ["ada/run-t01", "bob/run-t01"]
    assert planned(fewer, whole=False).orphans == []
    # What was superseded is no orphan, nor what lies in an output folder within this one.
    Output(done.output).supersede("bob/run-t01", ("video", "latents", "sidecar"))
    assert planned(fewer).orphans == ["ada/run-t01"]
    nested = replace(done, output=done.output / "nested")
    finish(nested, nested.shots[0])
    Output(nested.output).supersede(ADA, ("video", "latents", "sidecar"))
    assert planned(fewer).orphans == ["ada/run-t01"]


GOOD = {
    "version": 1,
    "digests": {"latents": "0" * 64, "video": "0" * 64},
    "settings": {},
    "encoding": {},
    "outputs": {},
}
FOREIGN: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"{",
    "not text": b"\xff\xfe\x00",
    "a list": b"[1, 2]",
    "a number": b"1",
    "null": b"null",
    "NaN": b"NaN",
    "deep": b"[" * 100_000,
    "many digits": b'{"version": ' + b"1" * 10_000 + b"}",
    "huge": json.dumps({**GOOD, "x": "x" * 2**24}).encode(),
    "no version": json.dumps({**GOOD, "version": None}).encode(),
    "newer version": json.dumps({**GOOD, "version": 2}).encode(),
    "somebody's": b'{"name": "my notes", "version": 1}',
    "escaping digest": json.dumps({**GOOD, "digests": {"latents": "0" * 64, "video": "../../../x"}}).encode(),
    **{
        f"{key} {value!r}": json.dumps({**GOOD, key: value}).encode()
        for key in ("digests", "settings", "encoding", "outputs")
        for value in (None, [], "x", 1)
    },
}


@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_json_in_the_output_folder(done: Campaign, what: str) -> None:
    output = Output(done.output)
    (output.folder / "notes.json").write_bytes(FOREIGN[what])
    (output.folder / "ada" / "notes.json").write_bytes(FOREIGN[what])
    assert planned(done).orphans == []
    # In the very place of a sidecar: the shot is made again, and what was there is moved aside.
    output.path(ADA, "sidecar").write_bytes(FOREIGN[what])
    assert ada(done) == ("render", "files without a readable sidecar", True)
    output.supersede(ADA, ("video", "sidecar", "latents"))
    kept = output.private / "superseded" / "unknown" / f"{ADA}.json"
    assert kept.read_bytes() == FOREIGN[what]
    assert ada(done) == ("render", "", False)


def test_what_is_no_file(done: Campaign) -> None:
    output = Output(done.output)
    (output.folder / "folder.json").mkdir()
    os.mkfifo(output.folder / "pipe.json")  # reading it would never end
    (output.folder / "dangling.json").symlink_to("nowhere")
    assert len(make_plan(done, WEIGHTS, today=TODAY).of("done")) == 4


@pytest.mark.parametrize("record", [None, 1, [], "x", {}, {"size": None}, {"size": "5", "sha256": 1}])
def test_a_sidecar_with_wrong_records(done: Campaign, record: Any) -> None:
    path = Output(done.output).path(ADA, "sidecar")
    edit_sidecar(path, outputs={"latents": record, "video": record})
    assert ada(done) == ("render", "latents missing or damaged", True)


def test_a_sidecar_edited_by_hand(done: Campaign) -> None:
    path = Output(done.output).path(ADA, "sidecar")
    digests = json.loads(path.read_text())["digests"]
    edit_sidecar(path, digests={**digests, "latents": "0" * 64})
    assert ada(done) == ("render", "changed: not known what", True)


def test_files_without_a_sidecar_are_reported(done: Campaign) -> None:
    Output(done.output).path(ADA, "sidecar").unlink()
    assert ada(done) == ("render", "files without a readable sidecar", True)


def test_unfinished_files_count_as_nothing(folder: Path) -> None:
    campaign = load(folder)
    for kind in ("latents", "video", "sidecar"):
        part = part_path(Output(campaign.output).path(ADA, kind))
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(b"half")
    assert ada(campaign) == ("render", "", False)


def test_cost_grows_with_the_number_of_shots(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sidecar is read once, a subject's files are looked at once."""
    campaign = load(folder, MANIFEST + "shots: [{subject: '*', prompt: '*', takes: 100}]\n")
    for shot in campaign.shots:
        finish(campaign, shot)
    reads: Counter[str] = Counter()
    real = lynx_parallel.output.folder.read_sidecar
    monkeypatch.setattr(
        lynx_parallel.output.folder, "read_sidecar", lambda path: (reads.update([str(path)]), real(path))[1]
    )
    hashed: Counter[Path] = Counter()
    monkeypatch.setattr(lynx_parallel.output.folder, "sha256_file", lambda path: hashed.update([path]))
    asked: Counter[Path | None] = Counter()
    content = lynx_parallel.plan.digests._content
    monkeypatch.setattr(lynx_parallel.plan.digests, "_content", lambda path: (asked.update([path]), content(path))[1])
    plan = make_plan(campaign, WEIGHTS, today=TODAY)
    assert len(plan.of("done")) == 400
    assert len(reads) == 400
    assert set(reads.values()) == {1}
    assert not hashed
    assert len(asked) == 4
    assert set(asked.values()) == {1}


def test_a_picture_changed_since_the_plan_is_noticed(folder: Path) -> None:
    """By the driver, which asks again once a shot is rendered."""
    campaign = load(folder)
    items = planned(campaign).items
    (folder / "ada.jpg").write_bytes(b"another picture, while it was rendered")
    same = [shot_digests(campaign, item.shot, WEIGHTS) == item.digests for item in items]
    assert same == [item.shot.subject.id != "ada" for item in items]
