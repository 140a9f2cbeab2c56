"""lynx-render forget --delete-videos: everything of one person goes, nothing of another; a receipt says what."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from lynx_parallel.cli.forget import forget as forget_command
from lynx_parallel.cli.load import load
from lynx_parallel.engine.record import write_record
from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.inputs.records import Request, find_record
from lynx_parallel.output.candidates import candidate_name
from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import Journal
from lynx_parallel.output.shard import FolderLock
from lynx_parallel.output.takes import Take, changing, read_takes
from lynx_parallel.subject import forget as subject_forget
from tests.helpers.campaigns import draw, finish, tree, write
from tests.helpers.light_command import light, of_shots, refused
from tests.helpers.planned import parts_of


@pytest.fixture
def campaign(tmp_path: Path, demo: Path) -> Campaign:
    """Four finished shots of two people, with posters, logs, takes, a report, and an older video of each."""
    write(tmp_path)
    draw(tmp_path)
    loaded = load(str(tmp_path / "m.yaml"), None, None, False)
    output = Output(loaded.campaign.output)
    journal = Journal(output.journal)
    for shot in loaded.campaign.shots:
        finish(loaded.campaign, shot, weights=loaded.parts[0].digests)
        journal.append("attempt", name=shot.name, subject=shot.subject.id, attempt=1)
        for path in (output.poster(shot.name), output.logs(shot.name, 1) / "rank0.log"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(shot.name)
    journal.close()
    with changing(output.takes) as takes:
        for shot in loaded.campaign.shots[::2]:
            take = Take(shot.subject.id, shot.prompt.id, shot.take, 7)
            takes[take.key] = take
    (output.folder / "report.html").write_text("page")
    return loaded.campaign


def forget(folder: Path, *options: str) -> dict[str, Any]:
    run = light("forget", "ada", "--from", "out", "--delete-videos", "--json", *options, cwd=folder)
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def test_it_lists_first(campaign: Campaign) -> None:
    folder = campaign.path.parent
    before = tree(folder)
    run = light("forget", "ada", "--from", "out", "--delete-videos", cwd=folder)
    assert f"  remove  {campaign.output}/ada/walk-t01.mp4" in run.stdout.splitlines()
    assert "ada: takes with seeds of their own: 1" in run.stdout
    assert run.stdout.splitlines()[-1].startswith("Nothing was removed. Add --yes to remove ")
    assert tree(folder) == before


def test_all_of_one_person_goes(campaign: Campaign) -> None:
    folder, output = campaign.path.parent, Output(campaign.output)
    before = tree(output.folder)
    digest = hashlib.sha256((output.folder / "ada" / "walk-t01.mp4").read_bytes()).hexdigest()
    found = forget(folder, "--yes", "--receipt", "receipt.json")
    assert found["receipt"] == str(folder / "receipt.json")
    after = tree(output.folder)
    assert not [name for name in after if "ada" in name]
    others = {name: content for name, content in before.items() if "bob" in name}
    assert len(others) >= 8
    assert others.items() <= after.items(), "the other person's files are the same"
    assert {take.subject for take in read_takes(output.takes).values()} == {"bob"}
    assert "report.html" not in after
    receipt = json.loads((folder / "receipt.json").read_text())
    [one] = receipt["subjects"]
    assert receipt["finished"]
    assert (receipt["version"], one["subject"], one["left"], one["takes"]) == (1, "ada", [], 1)
    by_path = {row["path"]: row for row in one["removed"]}
    assert by_path[f"{campaign.output}/ada/walk-t01.mp4"]["sha256"] == digest
    assert {Path(path).suffix for path in by_path} >= {".mp4", ".safetensors", ".json", ".jpg", ".log"}
    assert "walks" not in (folder / "receipt.json").read_text(), "no prompts"
    assert light("verify", "out", cwd=folder).returncode == 0
    planned = of_shots(light("plan", "m.yaml", "--shots", cwd=folder).stdout)
    actions = {line.split()[1].rstrip(":"): line.split()[0] for line in planned if "-t01" in line}
    # The take of bob/walk has another seed since.
    assert actions == dict(zip(["ada/walk-t01", "ada/run-t01", "bob/walk-t01"], ["render"] * 3, strict=True)) | {
        "bob/run-t01": "done"
    }


def test_a_receipt_is_never_replaced(campaign: Campaign) -> None:
    folder = campaign.path.parent
    (folder / "receipt.json").write_text("mine")
    before = tree(folder)
    options = ("forget", "ada", "--from", "out", "--delete-videos", "--yes", "--receipt")
    assert refused(*options, "receipt.json", cwd=folder) == [
        f"--receipt {folder}/receipt.json: exists already; name another file"
    ]
    assert refused(*options, "none/receipt.json", cwd=folder) == [
        f"--receipt {folder}/none/receipt.json: its folder cannot be written"
    ]
    assert refused("forget", "ada", "--receipt", "x.json", cwd=folder) == ["--receipt: needs --delete-videos"]
    assert tree(folder) == before


def test_a_removal_that_stopped_in_between_is_completed(campaign: Campaign) -> None:
    """The sidecar goes last, so that the shot is still known."""
    folder = campaign.path.parent
    (campaign.output / "ada" / "walk-t01.mp4").unlink()
    (campaign.output / "ada" / "run-t01.json").unlink()
    forget(folder, "--yes", "--receipt", "receipt.json")
    assert not [name for name in tree(campaign.output) if "ada" in name]


def test_a_killed_removal_leaves_a_receipt(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = campaign.path.parent
    monkeypatch.chdir(folder)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subject_forget, "forget", killed)
    with pytest.raises(KeyboardInterrupt):
        forget_command(["ada"], from_=["out"], yes=True, delete_videos=True, receipt="receipt.json")
    receipt = json.loads((folder / "receipt.json").read_text())
    [one] = receipt["subjects"]
    assert (receipt["finished"], one["removed"]) == (None, [])
    assert f"{campaign.output}/ada/walk-t01.mp4" in {row["path"] for row in one["left"]}


def test_not_while_a_run_is_at_work(campaign: Campaign) -> None:
    folder = campaign.path.parent
    with FolderLock(campaign.output / ".lynx"):
        run = light("forget", "ada", "--from", "out", "--delete-videos", "--yes", "--receipt", "r.json", cwd=folder)
    assert run.returncode == 3
    assert "another driver is at work here" in run.stderr
    assert not (folder / "r.json").exists()
    assert (campaign.output / "ada" / "walk-t01.mp4").exists()


def test_without_the_option_videos_stay(campaign: Campaign) -> None:
    folder = campaign.path.parent
    run = light("forget", "ada", "--from", "out", "--yes", cwd=folder)
    assert run.returncode == 0
    assert (campaign.output / "ada" / "walk-t01.mp4").exists()
    assert (campaign.output / "report.html").exists()
    assert not list(folder.glob("forgotten-*"))


def test_what_is_wanted_in_one_folder_is_kept_in_the_other(tmp_path: Path) -> None:
    """Ada is to be forgotten in one folder, and Bob in another. Each folder has takes of both, and a report."""
    outputs = {"ada": Output(tmp_path / "one"), "bob": Output(tmp_path / "two")}
    for output in outputs.values():
        for subject in ("ada", "bob"):
            with changing(output.takes) as takes:
                take = Take(subject, "walk", 1, 7)
                takes[take.key] = take
    search = subject_forget.find({name: {output.folder} for name, output in outputs.items()}, with_videos=True)
    subject_forget.forget(search, print)
    left = {name: {take.subject for take in read_takes(output.takes).values()} for name, output in outputs.items()}
    assert left == {"ada": {"bob"}, "bob": {"ada"}}


def test_logs_of_a_shot_below_another_stay(tmp_path: Path) -> None:
    """With a name pattern of one's own, one shot may be called like the folder of another."""
    output = Output(tmp_path / "out")
    journal = Journal(output.journal)
    for name, subject in (("shots", "ada"), ("shots/bob", "bob")):
        journal.append("attempt", name=name, subject=subject, attempt=1)
        (output.logs(name, 1)).mkdir(parents=True)
        (output.logs(name, 1) / "rank0.log").write_text(name)
    journal.close()
    subject_forget.forget(subject_forget.find({"ada": {output.folder}}, with_videos=True), print)
    assert not output.logs("shots", 1).exists()
    assert (output.logs("shots/bob", 1) / "rank0.log").read_text() == "shots/bob"


def write_traces(campaign: Campaign, folder: Path) -> None:
    """Adds what a run with the gate, auditions and scores leaves, and the records of two runs."""
    output = Output(campaign.output)
    for shot in campaign.shots:
        own = candidate_name(shot.name, 7)
        for path in (output.path(own, "video"), output.path(own, "sidecar"), output.poster(own), output.scores(own),
                     output.preview(shot.name), output.audition(shot.name), output.scores(shot.name)):  # fmt: skip
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{shot.name} of {shot.subject.id}")
    (output.private / "logs" / "ray").mkdir(parents=True)
    (output.private / "logs" / "ray" / "run.log").write_text("ada/walk-t01: ended\nbob/walk-t01: ended\nall ended\n")
    (output.private / "status.json").write_text('{"failures": [{"name": "ada/walk-t01"}]}')
    (folder / "shots.csv").write_text("subject,prompt\nada,walk\nbob,walk\n")
    for number, only in (("1", ()), ("2", ("ada/walk", "bob/*"))):
        request = Request(command=("lynx-render", "m.yaml", *only), only=only)
        write_record(output.record(f"2026-11-27T06000{number}"), campaign, parts_of(campaign), request, "2026-11-27")
    (output.record("2026-11-27T060001") / "shots.csv").write_text("subject,prompt\nada,walk\nbob,walk\n")


def traces(folder: Path, *words: str) -> list[str]:
    """Returns the files and folders below a folder whose name or content has one of the words."""
    expression = re.compile(rf"(?<![a-z])({'|'.join(words)})(?![a-z])".encode())
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if expression.search(str(path.relative_to(folder)).encode())
        or (path.is_file() and expression.search(path.read_bytes()))
    ]


WORDS = ("ada", "woman", "form-1")
"""Id of the subject, the value of her var, and the reference of her consent."""


def test_no_trace_is_left(campaign: Campaign) -> None:
    folder, output = campaign.path.parent, Output(campaign.output)
    write_traces(campaign, folder)
    before = load(str(folder / "m.yaml"), None, None, False).replan().items
    assert len(traces(output.folder, *WORDS)) > 30
    forget(folder, "--yes", "--receipt", "receipt.json")
    assert traces(output.folder, *WORDS) == []
    assert (output.private / "logs" / "ray" / "run.log").read_text() == "bob/walk-t01: ended\nall ended\n"
    records = sorted((output.private / "manifests").iterdir())
    assert (records[0] / "shots.csv").read_text() == "subject,prompt\nbob,walk\n"
    for record in records:  # a run can be repeated for the others
        loaded = load_campaign(find_record(record) or record)
        assert {shot.subject.id for shot in loaded.shots} == {"bob"}
    assert json.loads((records[1] / "run.json").read_text())["only"] == ["bob/*"]
    after = load(str(folder / "m.yaml"), None, None, False).replan().items
    assert [item for item in after if item.shot.subject.id == "bob"] == [
        item for item in before if item.shot.subject.id == "bob"
    ]
    status = json.loads(light("status", "out", "--json", cwd=folder).stdout)
    assert {name: count for name, count in status["counts"].items() if count} == {"done": 2}
    assert light("verify", "out", cwd=folder).returncode == 0


def test_an_interrupted_call_is_completed(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, output = campaign.path.parent, Output(campaign.output)
    write_traces(campaign, folder)

    def died(*_: object) -> None:
        raise KeyboardInterrupt

    search = subject_forget.find({"ada": {output.folder}}, with_videos=True)
    with monkeypatch.context() as patch:
        patch.setattr(subject_forget, "redact", died)
        with pytest.raises(KeyboardInterrupt):
            subject_forget.forget(search, print)
    assert traces(output.folder, *WORDS)
    forget(folder, "--yes")
    assert traces(output.folder, *WORDS) == []


def test_without_the_videos_their_scores_and_candidates_go(campaign: Campaign) -> None:
    folder, output = campaign.path.parent, Output(campaign.output)
    write_traces(campaign, folder)
    run = light("forget", "ada", "--from", "out", "--yes", cwd=folder)
    assert run.returncode == 0, run.stderr
    assert "ada: scores: 4" in run.stdout
    for folder_of in ("candidates", "auditions", "scores"):
        assert traces(output.private / folder_of, "ada") == []
        assert traces(output.private / folder_of, "bob")
    assert (output.folder / "ada" / "walk-t01.mp4").exists()
