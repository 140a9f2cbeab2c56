"""lynx-render score on finished videos, ours and others, with the real recogniser of dlib."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.output.folder import Output
from lynx_parallel.output.scores import read_scores
from lynx_parallel.stages.video import encode_video
from tests.helpers.campaigns import finish
from tests.helpers.finished import ids_of
from tests.helpers.light_command import errors_of, light
from tests.helpers.real_pictures import Picture, astronaut, person, save

MANIFEST = """\
version: 1
pipeline: demo-tiny
output: out
subjects:
  ada: {image: faces/ada.png}
  bob: {image: faces/bob.png}
prompts: {walk: A walk., talk: A talk.}
"""


def clip(picture: Picture, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    encode_video(np.stack([picture] * 3), path, fps=8, codec="h264", crf=12)
    return path


@pytest.fixture
def folder(tmp_path: Path, demo: Path) -> Path:
    """A folder with two people's pictures, and a finished shot of three: one shows the other person, one nobody."""
    save(astronaut(), tmp_path / "faces" / "ada.png")
    save(person(0), tmp_path / "faces" / "bob.png")
    (tmp_path / "m.yaml").write_text(MANIFEST)
    campaign = load_campaign(str(tmp_path / "m.yaml"))
    pictures = {"ada/walk-t01": astronaut()[:320, 64:384], "ada/talk-t01": person(0), "bob/walk-t01": person(0) * 0}
    for shot in campaign.shots:
        if shot.name in pictures:
            video = clip(pictures[shot.name], tmp_path / "made.mp4").read_bytes()
            finish(campaign, shot, video=video, name=shot.name, shot=ids_of(shot))
    return tmp_path


def rows(path: Path) -> dict[str, dict[str, Any]]:
    with path.open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_an_output_folder(folder: Path) -> None:
    done = light("score", "m.yaml", "--csv", "s.csv", "--jobs", "2", cwd=folder)
    assert done.returncode == 0, done.stderr
    table = rows(folder / "s.csv")
    assert {name: row["state"] for name, row in table.items()} == {
        "ada/walk-t01": "scored", "ada/talk-t01": "scored", "bob/walk-t01": "no face",
    }  # fmt: skip
    assert float(table["ada/walk-t01"]["mean"]) > 0.85
    assert float(table["ada/talk-t01"]["mean"]) < 0.4
    assert table["bob/walk-t01"]["mean"] == ""
    assert {row["recognizer"] for row in table.values()} == {"dlib"}
    assert "ada/talk-t01: dlib: 0." in done.stdout
    assert "below its threshold" in done.stdout
    assert "  bob: no score, 1 without a face" in done.stdout
    assert "1 of 4 shots is not finished" in done.stderr
    output = Output(folder / "out")
    sidecar = output.sidecar("ada/walk-t01")
    assert sidecar is not None
    scores = read_scores(output.scores("ada/walk-t01"), sidecar["outputs"]["video"]["sha256"])
    assert scores is not None
    assert f"{scores.identity['dlib'].mean}" == table["ada/walk-t01"]["mean"]


def test_a_second_call_scores_nothing_again(folder: Path) -> None:
    first = light("score", "m.yaml", "--jobs", "1", "--json", cwd=folder)
    times = {path: path.stat().st_mtime_ns for path in (folder / "out" / ".lynx" / "scores").rglob("*.json")}
    assert len(times) == 3
    second = light("score", "m.yaml", "--jobs", "1", "--json", cwd=folder)
    assert json.loads(second.stdout) == json.loads(first.stdout)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    light("score", "m.yaml", "--jobs", "1", "--again", "--only", "ada/walk", cwd=folder)
    again = {path.name for path in times if path.stat().st_mtime_ns != times[path]}
    assert again == {"walk-t01.json"}


def test_a_new_picture_needs_new_scores(folder: Path) -> None:
    light("score", "m.yaml", "--jobs", "1", cwd=folder)
    save(person(1), folder / "faces" / "ada.png")
    done = light("score", "m.yaml", "--jobs", "1", "--csv", "s.csv", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert float(rows(folder / "s.csv")["ada/walk-t01"]["mean"]) < 0.4


def test_a_damaged_video_is_not_scored(folder: Path) -> None:
    (folder / "out" / "ada" / "walk-t01.mp4").write_bytes(
        b"x" * (folder / "out" / "ada" / "walk-t01.mp4").stat().st_size
    )
    done = light("score", "m.yaml", "--jobs", "1", cwd=folder)
    assert done.returncode == 1
    assert "ada/walk-t01: not scored: its video is damaged" in done.stdout


def test_videos_of_another_system(folder: Path) -> None:
    clip(astronaut()[:320, 64:384], folder / "clips" / "ada_one.mp4")
    clip(person(0), folder / "clips" / "bob_two.mp4")
    clip(person(0), folder / "clips" / "eve_two.mp4")
    (folder / "clips" / "ada_cut.mp4").write_bytes((folder / "clips" / "ada_one.mp4").read_bytes()[:900])
    before = {path for path in folder.rglob("*") if path.is_file()}
    done = light("score", "--videos", "clips/{subject}_*.mp4", "--faces", "faces/{subject}.*", "--json", cwd=folder)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert {one["name"]: one["subject"] for one in found["videos"]} == {
        "clips/ada_one.mp4": "ada", "clips/bob_two.mp4": "bob",
    }  # fmt: skip
    assert all(one["mean"] > 0.7 for one in found["videos"])
    assert found["failed"]["clips/eve_two.mp4"] == "no picture fits faces/{subject}.*"
    assert "clips/ada_cut.mp4" in found["failed"]["clips/ada_cut.mp4"]
    assert {path for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--videos", "x.mp4"], "--videos and --faces: give both, or neither"),
        (["m.yaml", "--videos", "x.mp4", "--faces", "y.png"], "m.yaml: give an output folder, or --videos and --faces"),
        (["m.yaml", "--recognizer", "facenet"],
         "--recognizer facenet: must be one of dlib, insightface, sface, arcface_ir_se50, or NAME:PATH"),
        (["m.yaml", "--recognizer", "sface"], "recognizer sface: its files are not known: write sface:PATH"),
    ],
)  # fmt: skip
def test_mistakes(folder: Path, arguments: list[str], line: str) -> None:
    done = light("score", *arguments, cwd=folder)
    assert (done.returncode, errors_of(done)) == (2, [line])
