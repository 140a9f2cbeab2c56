"""lynx-render export."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from lynx_parallel.cli.entry import run
from lynx_parallel.engine.record import write_record
from lynx_parallel.inputs.records import Request
from lynx_parallel.output.folder import Output
from tests.helpers.campaigns import MANIFEST, draw, finish, load, tree, write
from tests.helpers.finished import finished_campaign, ids_of
from tests.helpers.light_command import light, refused
from tests.helpers.planned import parts_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    finished_campaign(tmp_path)
    return tmp_path


def test_a_delivery_of_a_campaign(folder: Path) -> None:
    Output(folder / "out").path("bob/run-t01", "video").unlink()
    done = light("export", "m.yaml", "--to", "delivery", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "1 of 4 shots is not finished\ndelivery: 3 videos exported, 62 B\n"
    names = ["ada_run_t01.mp4", "ada_walk_t01.mp4", "bob_walk_t01.mp4", "videos.csv", "videos.json"]
    assert sorted(path.name for path in (folder / "delivery").iterdir()) == names
    assert (folder / "delivery" / "ada_walk_t01.mp4").read_bytes() == b"video of ada/walk-t01"
    row = json.loads((folder / "delivery" / "videos.json").read_text())["videos"][1]
    sidecar = json.loads((folder / "out" / "ada" / "walk-t01.json").read_text())
    assert row["prompt_text"] == "A woman walks."
    assert row["sha256"] == sidecar["outputs"]["video"]["sha256"]
    assert (row["latents_digest"], row["video_digest"]) == (*sidecar["digests"].values(),)
    assert row["settings"] == sidecar["settings"] | sidecar["encoding"]


def test_an_output_folder_some_shots_and_names(folder: Path) -> None:
    done = light("export", "out", "--to", "d", "--only", "ada/*", "--name", "{subject}/{prompt}-{seed}", cwd=folder)
    assert done.stdout == "d: 2 videos exported, 41 B\n"
    assert (folder / "d" / "ada" / "walk-42.mp4").is_file()
    again = light("export", "out", "--to", "d", "--name", "{subject}/{prompt}-{seed}", "--link", cwd=folder)
    assert again.stdout == "d: 2 videos exported, 41 B, 2 already there\n"
    assert (folder / "d" / "bob" / "run-42.mp4").samefile(folder / "out" / "bob" / "run-t01.mp4")


def test_an_output_folder_knows_the_options_of_its_last_run(tmp_path: Path) -> None:
    """Otherwise all shots of a run with another seed would count as rerolled."""
    write(tmp_path)
    draw(tmp_path)
    campaign = load(tmp_path, MANIFEST, "sampling.seed=7")
    output, request = Output(campaign.output), Request(set=("sampling.seed=7", "output=elsewhere"))
    write_record(output.record("2026-11-27T060000"), campaign, parts_of(campaign), request, "2026-11-27T06:00:00")
    for shot in campaign.shots:
        finish(campaign, shot, shot=ids_of(shot))
    done = light("export", "out", "--to", "d", cwd=tmp_path)
    assert done.stdout == "d: 4 videos exported, 82 B\n"
    assert light("export", "m.yaml", "--to", "d", cwd=tmp_path).stdout.splitlines()[0] == (
        "ada/walk-t01: left out: made with seed 7; the next render takes 42"
    )


def test_picked_takes(folder: Path) -> None:
    none = light("export", "m.yaml", "--to", "d", "--picked", cwd=folder)
    assert (none.returncode, (folder / "d").exists()) == (1, False)
    assert none.stdout == (
        "out: no finished shot is picked; pick in report.html, then render with --review review.csv\n"
    )
    takes = '{"version": 1, "takes": [{"subject": "ada", "prompt": "run", "take": 1, "seed": 42, "state": "accepted"}]}'
    Output(folder / "out").takes.write_text(takes)
    for target in ("m.yaml", "out"):
        done = light("export", target, "--to", f"to-{target}", "--picked", cwd=folder)
        assert (done.returncode, done.stdout) == (0, f"to-{target}: 1 video exported, 20 B\n")
        assert (folder / f"to-{target}" / "ada_run_t01.mp4").is_file()


def test_a_damaged_video_is_a_line_and_exit_code_1(folder: Path) -> None:
    Output(folder / "out").path("ada/walk-t01", "video").write_bytes(b"video of ada/walk-t99")
    done = light("export", "out", "--to", "d", "--json", cwd=folder)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "ada/walk-t01: damaged: its content differs from the sidecar's checksum; render again to replace it",
        "d: 3 videos exported, 61 B, 1 damaged",
    ]
    result = json.loads(done.stdout)
    assert result["damaged"].keys() == {"ada/walk-t01"}
    assert [row["file"] for row in result["exported"]] == ["ada_run_t01.mp4", "bob_run_t01.mp4", "bob_walk_t01.mp4"]
    assert (result["total"], result["unfinished"], result["exit_code"]) == (4, 0, 1)


def test_what_is_there_is_never_replaced(folder: Path) -> None:
    (folder / "d").mkdir()
    (folder / "d" / "ada_walk_t01.mp4").write_text("mine")
    (folder / "d" / "videos.json").write_text("{}")
    assert refused("export", "out", "--to", "d", cwd=folder) == [
        "d/ada_walk_t01.mp4: exists with other content; remove it, or choose another name or folder",
        "d/videos.json: exists and is not ours",
    ]


def test_too_little_room_is_known_before_anything_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finished_campaign(tmp_path)
    monkeypatch.setattr(gc, "disable", lambda: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=81))
    assert run(["export", str(tmp_path / "out"), "--to", str(tmp_path / "d")]) == 3
    assert capsys.readouterr().err == f"{tmp_path}/d: 82 B are needed, 81 B are free\nhelp: lynx-render help LX201\n"
    assert not list((tmp_path / "d").iterdir())
    assert run(["export", str(tmp_path / "out"), "--to", str(tmp_path / "d"), "--link"]) == 0, "links need no room"


def test_bad_options(folder: Path) -> None:
    before = tree(folder)
    assert refused("export", "out", "--to", "out/d", cwd=folder) == [
        "--to out/d: is the output folder, or inside; choose a folder outside"
    ]
    assert refused("export", "out", "--to", "d", "--name", "{promt}", cwd=folder)[0].startswith(
        "--name '{promt}': {promt}: unknown field; did you mean 'prompt'?"
    )
    assert refused("export", "out", "--to", "d", "--only", "eve/*", cwd=folder)[0].startswith(
        "--only 'eve/*': fits no shot; subject/prompt: ada/run, ada/walk, bob/run, bob/walk"
    )
    assert tree(folder) == before
