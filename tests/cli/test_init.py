"""lynx-render init: odd pictures and prompts, and what it writes is accepted by plan."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.campaigns import LITE, tree
from tests.helpers.json_schemas import schema_mistakes
from tests.helpers.light_command import light, refused

LONG = "A {person} walks " + "on and on " * 300

PICTURES = {
    "ada.jpg": "ada",
    "ada.png": "ada-2",
    "Ada.WEBP": "Ada-3",
    "two words.jpg": "two-words",
    "Porträt Nr 3.JPG": "Portrat-Nr-3",
    "no.png": "no",
    "1e3.png": "1e3",
    "~tilde.png": "tilde",
    "it's, {a} #1: \"x\".png": "it-s-a-1-x",
    "line\nbreak.png": "line-break",
    "back\\slash.png": "back-slash",
    "old.part.png": "old-part",
    "-dash.png": "dash",
    "2027-01-31.jpg": "2027-01-31",
}  # fmt: skip
"""Ids of pictures, by file name."""
PROMPTS = {
    "plain": "A plain prompt.",
    "quotes": "She says \"hi\": it's a 'test' # 1",
    "field": "A {person} and a {pet|cat}.",
    "braces": 'JSON: {"a": 1} {',
    "yes": "yes",
    "number": "1e3",
    "unicode": "Ein Porträt von 走 😀",
    "dash": "- a list? & an *anchor*, %d @me !tag",
    "long": LONG,
}


def draw(folder: Path, *names: str) -> None:
    """Writes pictures whose content fits no other format than their bytes say."""
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", (64, 48), "red").save(folder / name, "WEBP" if name.lower().endswith("webp") else "PNG")


def made(*arguments: str | Path, cwd: Path) -> tuple[list[str], list[str]]:
    """Runs init and returns the lines of stdout and stderr."""
    run = light("init", *arguments, cwd=cwd)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines(), run.stderr.splitlines()


def planned(manifest: str, cwd: Path) -> dict[str, Any]:
    """Plans a manifest by the command that init names."""
    assert schema_mistakes("manifest", cwd / manifest) == []
    run = light("plan", manifest, "--json", "--shots", cwd=cwd)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_a_folder_and_a_list_of_prompts(tmp_path: Path, demo: Path) -> None:
    faces = tmp_path / "faces"
    draw(faces, *PICTURES)
    (tmp_path / "prompts.txt").write_text("\n\n".join(PROMPTS.values()) + "\n" + PROMPTS["plain"] + "\n")
    out, errors = made("faces", "--prompts", "prompts.txt", "--pipeline", "demo-tiny", cwd=tmp_path)
    assert out == [
        f"campaign.yaml: {len(PICTURES)} subjects, {len(PROMPTS)} prompts",
        "next: lynx-render plan campaign.yaml",
    ]
    assert any("Ada.WEBP → Ada-3" in line or "and " in line for line in errors)
    assert any(line.startswith("warning: braces in prompts are doubled") for line in errors)
    found = planned("campaign.yaml", tmp_path)
    subjects = {shot["name"].split("/")[0] for shot in found["shots"]}
    assert {one.casefold() for one in subjects} == {one.casefold() for one in PICTURES.values()}
    texts = {shot["text"] for shot in found["shots"] if shot["name"].startswith("dash/")}
    expected = {text.replace("{person}", "person").replace("{pet|cat}", "cat").strip() for text in PROMPTS.values()}
    assert texts == expected
    assert {shot["action"] for shot in found["shots"]} == {"render"}, "each picture was found and read"
    assert found["output"] == str(tmp_path / "renders" / "campaign")


def test_the_optional_sections_are_valid_too(tmp_path: Path, demo: Path) -> None:
    draw(tmp_path / "faces", "ada.png", "bob.png")
    made("faces", "--pipeline", "demo-tiny", cwd=tmp_path)
    file = tmp_path / "campaign.yaml"
    text = file.read_text()
    file.write_text(re.sub(r"(?m)^# (shots:|variants:|  [-\w].*)$", r"\1", text.replace("#   ada: ", "#     ada: ")))
    assert file.read_text().count("\n# ") < text.count("\n# ")
    found = planned("campaign.yaml", tmp_path)
    assert len(found["shots"]) == 2 * 2 * 3 * 3, "subjects, prompts, takes, variants"


def test_what_cannot_be_used_is_listed(tmp_path: Path, demo: Path) -> None:
    faces = tmp_path / "faces"
    draw(faces, "ada.png", "bad.jpg")
    (faces / "bad.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (faces / "notes.txt").write_text("x")
    (faces / ".hidden.png").write_bytes(b"x")
    (faces / "gone.png").symlink_to("nowhere.png")
    (faces / "inner").mkdir()
    (faces / "camera").write_bytes((faces / "ada.png").read_bytes())
    with open(os.fsencode(faces) + b"/caf\xe9.png", "wb") as file:
        file.write((faces / "ada.png").read_bytes())
    out, errors = made("faces", "--pipeline", "demo-tiny", cwd=tmp_path)
    assert out[0] == "campaign.yaml: 2 subjects, 2 prompts"
    assert errors == [
        "warning: pictures that cannot be read were left out (1): faces/bad.jpg: not a picture (or of a format that "
        "Pillow cannot read)",
        "warning: pictures whose names are not UTF-8 were left out (1): faces/caf\\udce9.png",
        "warning: files that are no pictures were left out (2): faces/gone.png; faces/notes.txt",
    ]
    assert {shot["name"].split("/")[0] for shot in planned("campaign.yaml", tmp_path)["shots"]} == {"ada", "camera"}


@pytest.mark.parametrize(
    ("table", "ids"),
    [
        ("prompt\nA walk.\n\"A run, and a jump\"\n", ["a-walk", "a-run-and-a-jump"]),
        ("prompt;notes\nA walk.;good\n", ["a-walk"]),
        ("prompt,prompt_text\nx y,A walk.\nX-Y,A run.\n,A jump.\n", ["x-y", "X-Y-2", "a-jump"]),
        ("prompt\n走\n跑\n", ["prompt", "prompt-2"]),
    ],
)  # fmt: skip
def test_a_table_of_prompts(tmp_path: Path, demo: Path, table: str, ids: list[str]) -> None:
    draw(tmp_path / "faces", "ada.png")
    (tmp_path / "p.csv").write_text(table)
    made("faces", "--prompts", "p.csv", "--pipeline", "demo-tiny", cwd=tmp_path)
    assert [shot["name"] for shot in planned("campaign.yaml", tmp_path)["shots"]] == [f"ada/{id_}-t01" for id_ in ids]


def test_paths_are_relative_to_the_manifest(tmp_path: Path, demo: Path) -> None:
    draw(tmp_path / "faces", "ada.png")
    (tmp_path / "own.yaml").write_text(
        LITE.replace("guidance_scale_i: null", "seed: 7") + "face: {detector: demo:faces, recognizer: demo:faces}\n"
    )
    (tmp_path / "real" / "jobs").mkdir(parents=True)
    (tmp_path / "jobs").symlink_to("real/jobs")
    name = "jobs/my campaign.yaml"
    out, _ = made("faces", "--pipeline", "own.yaml", "--output", "videos", "-o", name, cwd=tmp_path)
    assert out[-1] == f"next: lynx-render plan {shlex.quote(name)}"
    text = (tmp_path / name).read_text()
    assert "image: ../../faces/ada.png" in text
    assert "\npipeline: ../../own.yaml\n" in text
    assert planned(name, tmp_path)["output"] == str(tmp_path / "videos")
    made("faces", "--pipeline", "./own.yaml", "--output", str(tmp_path / "videos"), "-o", "here.yaml", cwd=tmp_path)
    text = (tmp_path / "here.yaml").read_text()
    assert "image: faces/ada.png" in text
    assert "\npipeline: own.yaml\n" in text
    assert f"\noutput: {tmp_path}/videos\n" in text


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    draw(tmp_path / "faces", "ada.png")
    (tmp_path / "campaign.yaml").write_text("mine")
    before = tree(tmp_path)
    assert refused("init", "faces", cwd=tmp_path) == [
        "--out campaign.yaml: exists already; choose another name with -o FILE"
    ]
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["none"], "none: No such file or directory"),
        (["facse"], "facse: No such file or directory; did you mean 'faces'?"),
        (["p.txt"], "p.txt: a file, not a folder of pictures"),
        (["empty"], "empty: no picture in this folder; 1 file left out: empty/x.txt"),
        ([], ".: no picture in this folder; 2 files left out: b.txt"),
        (["faces", "-o", "campaign"], "--out campaign: must end in .yaml"),
        (["faces", "-o", "none/c.yaml"], "--out none/c.yaml: no such folder: none"),
        (["faces", "--pipeline", "lynx-ful"], "pipeline 'lynx-ful': no shipped pipeline of that name; did you mean 'l"),
        (["faces", "--pipeline", "./x.yaml"], "x.yaml: no such pipeline file"),
        (["faces", "--prompts", "q.txt"], "--prompts q.txt: missing file; did you mean 'p.txt'?"),
        (["faces", "--prompts", "empty/x.txt"], "--prompts empty/x.txt: holds no prompt"),
        (["faces", "--prompts", "b.txt"], "--prompts b.txt:2: not UTF-8 text"),
        (["faces", "--prompts", "t.csv"], "t.csv: missing file"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: list[str], line: str) -> None:
    draw(tmp_path / "faces", "ada.png")
    (tmp_path / "p.txt").write_text("A walk.\n")
    (tmp_path / "b.txt").write_bytes(b"A walk.\n\xff")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.txt").write_text("\n \n")
    [found] = refused("init", *arguments, cwd=tmp_path)
    assert found.startswith(line)


def test_a_wrong_table_names_its_columns(tmp_path: Path) -> None:
    draw(tmp_path / "faces", "ada.png")
    (tmp_path / "t.csv").write_text("promt\nx\n")
    lines = refused("init", "faces", "--prompts", "t.csv", cwd=tmp_path)
    assert lines[0].startswith("t.csv:1: column 'promt': unknown column; did you mean 'prompt'?")
