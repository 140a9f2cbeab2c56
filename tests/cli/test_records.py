"""Records of runs: what they hold, and that a run is repeated from its record alone."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import shutil
import subprocess
import termios
from pathlib import Path

import pytest

import lynx_parallel
from lynx_parallel.cli.load import load as load_all
from lynx_parallel.engine.record import write_record
from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.inputs.notices import notice_lines
from lynx_parallel.inputs.records import RUN_FILE, Request, find_record, read_record
from lynx_parallel.output.checksums import sha256_file
from lynx_parallel.output.folder import Output
from lynx_parallel.plan.changes import find_changes
from tests.helpers.campaigns import MANIFEST, WEIGHTS, draw, finish, write
from tests.helpers.light_command import COMMAND, errors_of, light
from tests.helpers.planned import parts_of

RUN = "2026-07-01T120000.000+0000"


def made(folder: Path, *, only: tuple[str, ...] = (), done: bool = True) -> Path:
    """Finishes a campaign of a table, a prompt file and a pipeline of its own. Returns the folder of its record."""
    (folder / "mine" / "texts").mkdir(parents=True)
    path = write(folder / "mine")
    draw(folder / "mine")
    (folder / "mine" / "texts" / "m.yaml").write_text("A {person} walks.")  # as the manifest is called
    (folder / "mine" / "shots.csv").write_text(
        "subject,prompt,seed,prompt_text\nada,walk,1,\nbob,,2,A {person} sits.\n"
    )
    prompts = "prompts: {walk: {file: texts/m.yaml}}\nshots: {from: shots.csv}\n"
    path.write_text(MANIFEST.partition("prompts:")[0] + prompts)
    loaded = load_all(str(path), ["video.crf=24", f"output={folder / 'out'}"], list(only), False)
    campaign, digests = loaded.campaign, loaded.parts[0].digests
    output = Output(campaign.output)
    options = (("--ulysses", "2"), ("--shard-weights",))
    command = ("lynx-render", "m.yaml", "--set", "video.crf=24", "--ulysses", "2", "--shard-weights")
    request = Request(command, ("video.crf=24", f"output={folder / 'out'}"), only, options)
    write_record(output.record(RUN), campaign, parts_of(campaign, digests), request, "2026-07-01T12:00:00.000+00:00")
    for shot in campaign.shots if done else ():
        finish(campaign, shot, weights=digests, run=RUN)
    return output.record(RUN)


def test_what_a_record_holds(tmp_path: Path, demo: Path) -> None:
    folder = made(tmp_path)
    record = json.loads((folder / RUN_FILE).read_text())
    mine = tmp_path / "mine"
    copies = {Path(file["path"]): file for file in record["files"]}
    assert set(copies) == {mine / "m.yaml", mine / "full.yaml", mine / "texts" / "m.yaml", mine / "shots.csv"}
    for path, file in copies.items():
        assert (folder / file["copy"]).read_bytes() == path.read_bytes()
        assert file["sha256"] == sha256_file(path)
        assert not file["shipped"]
    assert {Path(one["path"]).name for one in record["pictures"]} == {"ada.jpg", "bob.jpg", "ada.npy", "bob.npy"}
    assert all(one["sha256"] == sha256_file(Path(one["path"])) for one in record["pictures"])
    assert sorted(path.name for path in folder.iterdir()) == [
        "2-m.yaml", "full.yaml", "m.yaml", "run.json", "shots.csv",
    ]  # fmt: skip
    assert record["command"][:2] == ["lynx-render", "m.yaml"]
    assert record["set"][0] == "video.crf=24"
    assert record["options"] == [["--ulysses", "2"], ["--shard-weights"]]
    assert record["versions"]["lynx_parallel"] == lynx_parallel.__version__
    assert {"numerics", "python", "torch", "diffusers", "ray"} <= set(record["versions"])
    assert record["settings"]["video"]["crf"] == 24
    assert "base/vae/config.json" in record["weights"]


def test_a_shipped_pipeline_is_marked_and_copied(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text(MANIFEST.replace("./full.yaml", "demo-tiny"))
    campaign = load_campaign(path)
    write_record(tmp_path / "record", campaign, parts_of(campaign, WEIGHTS), Request(), "")
    files = json.loads((tmp_path / "record" / RUN_FILE).read_text())["files"]
    assert {file["copy"]: file["shipped"] for file in files} == {"m.yaml": False, "demo-tiny.yaml": True}


def test_a_run_is_repeated_from_its_record(tmp_path: Path, demo: Path) -> None:
    """The manifest's folder is gone, but for the pictures; the output folder was moved."""
    record = made(tmp_path)
    for path in (tmp_path / "mine").rglob("*"):
        if path.is_file() and path.suffix not in (".jpg", ".npy"):
            path.unlink()
    shutil.move(tmp_path / "out", tmp_path / "moved")
    record = tmp_path / "moved" / record.relative_to(tmp_path / "out")
    for name in (record, record / RUN_FILE):
        run = light("plan", name, "--json", cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        found = json.loads(run.stdout)
        assert found["output"] == str(tmp_path / "moved")
        assert [shot["action"] for shot in found["shots"]] == ["done", "done"]
        assert found["orphans"] == []
    changed = json.loads(light("plan", record, "--set", "video.crf=30", "--json", cwd=tmp_path).stdout)
    assert [shot["reason"] for shot in changed["shots"]] == ["changed: video.crf"] * 2


def test_tables_of_people_and_patterns_are_repeated(tmp_path: Path, demo: Path) -> None:
    """A table of people in another folder, as a spreadsheet saves it; or a pattern of pictures, which stay."""
    for kind in ("table", "pattern"):
        mine = tmp_path / kind
        (mine / "lists").mkdir(parents=True)
        path = write(mine)
        people = "id;image;embedding;vars.person\nada;../ada.jpg;../ada.npy;woman\nbob;../bob.jpg;../bob.npy;man\n"
        (mine / "lists" / "people.csv").write_text(people, encoding="utf-16")
        given = "{from: lists/people.csv}" if kind == "table" else "{from: '*.jpg', vars: {person: woman}}"
        head = "version: 1\npipeline: demo-tiny\noutput: out\n"
        text = head + f"subjects: {given}\nprompts: {{walk: 'A {{person}} walks.'}}\n"
        path.write_text(text)
        loaded = load_all(str(path), None, None, False)
        campaign, digests = loaded.campaign, loaded.parts[0].digests
        record = Output(campaign.output).record(RUN)
        write_record(record, campaign, parts_of(campaign, digests), Request(), "")
        for shot in campaign.shots:
            finish(campaign, shot, weights=digests, run=RUN)
        path.unlink()
        shutil.rmtree(mine / "lists")
        run = light("plan", record, "--json", cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        actions = {shot["name"]: shot["action"] for shot in json.loads(run.stdout)["shots"]}
        assert actions == {"ada/walk-t01": "done", "bob/walk-t01": "done"}


def test_a_record_keeps_only(tmp_path: Path, demo: Path) -> None:
    record = made(tmp_path, only=("ada/*",))
    shots = json.loads(light("plan", record, "--json", cwd=tmp_path).stdout)["shots"]
    assert [shot["name"] for shot in shots] == ["ada/walk-t01"]


def test_edits_since_the_run_do_not_matter_and_changed_pictures_are_named(tmp_path: Path, demo: Path) -> None:
    record = made(tmp_path)
    mine = tmp_path / "mine"
    for name in ("m.yaml", "full.yaml", "shots.csv", "texts/m.yaml"):
        (mine / name).write_text("nothing")
    run = light("plan", record, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    shutil.copy(mine / "bob.jpg", mine / "ada.jpg")
    run = light("plan", record, cwd=tmp_path)
    assert run.stderr == "warning: a picture differs from that of the recorded run (1): mine/ada.jpg\n"
    assert light("plan", record, "--strict", cwd=tmp_path).returncode == 2
    found = find_record(record)
    assert found is not None
    assert notice_lines(found.changed_pictures())


def test_the_options_of_a_record(tmp_path: Path, demo: Path) -> None:
    record = read_record(made(tmp_path))
    assert record is not None
    every = ("--set", "--only", "--ulysses", "--shard-weights")
    assert record.arguments(every) == ["--ulysses", "2", "--shard-weights", "--set", "video.crf=24"]
    assert record.arguments(["--set"]) == ["--set", "video.crf=24"]


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 2}', '{"version": 1}'])
def test_a_record_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / RUN_FILE).write_text(text)
    assert read_record(tmp_path) is None
    with pytest.raises(InputErrors, match="not the record of a run"):
        load_campaign(tmp_path)
    run = light("plan", tmp_path, cwd=tmp_path)
    assert (run.returncode, run.stdout) == (2, "")
    assert errors_of(run) == ["run.json: not the record of a run that this version can read"]


# The command line asks before it renders


def test_render_asks_for_a_dropped_set(tmp_path: Path, demo: Path) -> None:
    record = made(tmp_path)
    out = f"output={tmp_path / 'out'}"
    before = sorted(path for path in (tmp_path / "out").rglob("*"))
    run = light("mine/m.yaml", "--set", out, cwd=tmp_path)
    assert run.returncode == 2, run.stdout + run.stderr
    assert run.stderr == (
        "2 finished shots would be made again, not because of your edits: video.crf 24 → 18: --set video.crf=24 was "
        "given when they were made. To keep the finished shots, give --set video.crf=24. To make them again, add --yes "
        "or set LYNX_YES=1.\n"
        "help: lynx-render help LX104\n"
    )
    assert "to encode again" not in run.stdout, "the refusal alone gives the reason"
    assert sorted(path for path in (tmp_path / "out").rglob("*")) == before
    plan = light("plan", "mine/m.yaml", "--set", out, cwd=tmp_path)
    assert plan.returncode == 0
    last = "2 finished shots to encode again: video.crf 24 → 18 (--set video.crf=24 was given when they were made)"
    assert f"{last}; render asks first" in plan.stdout.splitlines()
    assert light("mine/m.yaml", "--set", out, "--set", "video.crf=24", cwd=tmp_path).returncode == 0
    assert light(record, cwd=tmp_path).returncode == 0
    found = json.loads(light("plan", "mine/m.yaml", "--set", out, "--json", cwd=tmp_path).stdout)["changes"]
    assert [(one["action"], len(one["shots"])) for one in found] == [("encode", 2)]


def test_a_file_of_weights_with_another_content_asks(tmp_path: Path, demo: Path) -> None:
    (tmp_path / "mine").mkdir()
    shutil.copy(demo / "lite" / "ip_layers.safetensors", tmp_path / "mine" / "id.safetensors")
    text = (tmp_path / "mine" / "id.safetensors").read_bytes()
    path = write(tmp_path / "mine")
    own = (tmp_path / "mine" / "lite.yaml").read_text().replace("id: demo:lite", "id: ./id.safetensors")
    (tmp_path / "mine" / "lite.yaml").write_text(own)
    path.write_text(MANIFEST.replace("./full.yaml", "./lite.yaml"))
    loaded = load_all(str(path), None, None, False)
    campaign, digests = loaded.campaign, loaded.parts[0].digests
    write_record(Output(campaign.output).record(RUN), campaign, parts_of(campaign, digests), Request(), "")
    for shot in campaign.shots:
        finish(campaign, shot, weights=digests, run=RUN)
    assert light(path, cwd=tmp_path).returncode == 0
    (tmp_path / "mine" / "id.safetensors").write_bytes(text[:-1] + bytes([text[-1] ^ 1]))
    run = light(path, cwd=tmp_path)
    assert run.returncode == 2
    name = tmp_path / "mine" / "id.safetensors"
    assert f"weights: the files of {name} have another content. To keep the finished shots, restore" in run.stderr
    loaded = load_all(str(path), None, None, False)
    campaign, digests = loaded.campaign, loaded.parts[0].digests
    assert len(find_changes(loaded.replan().items, campaign, digests, ())) == 1


def shown_until(text: str, terminal: int) -> str:
    """Returns what a process shows on its terminal, up to a text or its end."""
    shown = ""
    while text not in shown and select.select([terminal], [], [], 100)[0]:
        try:
            shown += os.read(terminal, 1000).decode()
        except OSError:  # nobody holds the other end any more
            break
    return shown


@pytest.mark.parametrize(("answer", "code"), [("n\n", 2), ("\n", 2), ("\x04", 2), ("\x03", 130)])
def test_a_terminal_is_asked(tmp_path: Path, demo: Path, answer: str, code: int) -> None:
    made(tmp_path)
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "mine/m.yaml", "--set", f"output={tmp_path / 'out'}"],
        cwd=tmp_path, stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = shown_until("[y/N]", ours)
        assert "Make 2 finished shots again? [y/N]" in shown
        os.write(ours, answer.encode())
        shown += shown_until("LYNX_YES=1.", ours)
        assert process.wait(100) == code
        os.close(ours)
    assert "To keep the finished shots, give --set video.crf=24." in shown
    assert "Traceback" not in shown
