"""``lynx-render show`` and ``again`` on finished shots with real marks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from lynx_parallel.cli.load import load_parts
from lynx_parallel.engine.record import write_record
from lynx_parallel.inputs.records import Request
from lynx_parallel.output.folder import Output
from lynx_parallel.output.marks import TRAINED, Mark, add_mark
from lynx_parallel.output.scores import ShotScores, write_scores
from tests.helpers.campaigns import MANIFEST, draw, finish, load, write
from tests.helpers.fake_gangs import score_of
from tests.helpers.finished import ids_of
from tests.helpers.light_command import light, refused
from tests.helpers.planned import parts_of

ADA, VIDEO = "ada/walk-t01", "out/ada/walk-t01.mp4"
RUN = "2026-11-27T060000"


@pytest.fixture
def folder(tmp_path: Path, demo: Path) -> Path:
    """The shots of ada are done by a recorded run with ``--set``, as the demo's weights would make them."""
    write(tmp_path)
    draw(tmp_path)
    campaign = load(tmp_path, MANIFEST, "sampling.seed=9")
    request = Request(set=("sampling.seed=9",))
    write_record(Output(campaign.output).record(RUN), campaign, parts_of(campaign), request, "2026-11-27T06:00:00")
    loaded = load_parts(campaign, download=False)
    for item in loaded.replan().items:
        shot = item.shot
        if shot.subject.id == "ada":
            made = tmp_path / "made.mp4"
            made.write_bytes(b"\0\0\0\x10ftypisom" + shot.name.encode()[:4])
            add_mark(made, Mark(item.digests.video))
            finish(campaign, shot, video=made.read_bytes(), weights=loaded.parts[0].digests, name=shot.name,
                   shot=ids_of(shot), run=RUN)  # fmt: skip
    (Output(campaign.output).private / "journal.jsonl").touch()
    return tmp_path


def shown(folder: Path, *arguments: str) -> tuple[int, list[dict[str, object]]]:
    done = light("show", *arguments, "--json", cwd=folder)
    return done.returncode, json.loads(done.stdout)["files"]


def test_a_finished_video(folder: Path) -> None:
    sidecar = json.loads((folder / "out" / f"{ADA}.json").read_text())
    scores = ShotScores(
        sidecar["outputs"]["video"]["sha256"], {"dlib": score_of(0.6), "sface": score_of(None, "sface")}
    )
    write_scores(Output(folder / "out").scores(ADA), scores)
    code, [row] = shown(folder, VIDEO)
    assert (code, row["good"], row["verdict"]) == (0, True, "verified: the content that its sidecar lists")
    assert row["says"] == {"source": TRAINED, "digest": sidecar["digests"]["video"]}
    assert row["scores"] == {"dlib": 0.6, "sface": "no face"}
    assert row["prompt"] == "A woman walks."
    lines = light("show", VIDEO, cwd=folder).stdout
    assert "prompt: A woman walks." in lines
    assert "seed 9" in lines


@pytest.mark.parametrize("name", ["out/ada/walk-t01.json", "out/ada/walk-t01.latents.safetensors"])
def test_its_other_files(folder: Path, name: str) -> None:
    code, [row] = shown(folder, name)
    assert (code, row["verdict"]) == (0, "verified: the content that its sidecar lists")


def test_a_changed_video_differs(folder: Path) -> None:
    with (folder / VIDEO).open("r+b") as file:
        file.seek(9)
        file.write(b"x")
    code, [row] = shown(folder, VIDEO)
    assert (code, row["verdict"]) == (1, "differs from its sidecar: other content than was written")


def test_a_sidecar_of_another_digest_differs(folder: Path) -> None:
    path = folder / "out" / f"{ADA}.json"
    sidecar = json.loads(path.read_text())
    sidecar["digests"]["video"] = "e" * 64
    path.write_text(json.dumps(sidecar))
    code, [row] = shown(folder, VIDEO)
    assert (code, row["verdict"]) == (1, "differs from its sidecar: another digest")


def test_a_copy_elsewhere(folder: Path) -> None:
    shutil.copy(folder / VIDEO, folder / "copy.mp4")
    code, [row] = shown(folder, "copy.mp4")
    assert (code, row["verdict"]) == (0, "no sidecar found: not verified")
    assert "sidecar" not in row
    code, [row] = shown(folder, "copy.mp4", "--output", "out")
    assert (code, row["sidecar"]) == (0, f"out/{ADA}.json")
    (folder / "other.mp4").write_bytes((folder / VIDEO).read_bytes()[:16])
    add_mark(folder / "other.mp4", Mark("f" * 64, "A cat", 3))
    code, rows = shown(folder, "copy.mp4", "other.mp4", "--output", "out")
    assert [row["verdict"] for row in rows][1] == "no sidecar found: not verified"
    assert rows[1]["says"] == {"source": TRAINED, "digest": "f" * 64, "prompt": "A cat", "seed": 3}


def test_what_cannot_be_shown(folder: Path) -> None:
    assert refused("show", "nothing.mp4", "out", cwd=folder) == [
        "nothing.mp4: No such file or directory", "out: Is a directory",
    ]  # fmt: skip
    (folder / "plain").mkdir()
    assert refused("show", VIDEO, "--output", "plain", cwd=folder) == ["--output plain: not an output folder"]


def test_again_gives_the_same_digest(folder: Path) -> None:
    sidecar = json.loads((folder / "out" / f"{ADA}.json").read_text())
    done = light("again", VIDEO, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert f"same digest: {sidecar['digests']['latents']}" in done.stdout
    manifest = yaml.safe_load((folder / "ada-walk-t01-again.yaml").read_text())
    assert manifest["shots"] == [{"subject": "ada", "prompt": "walk", "takes": {1: 9}}]
    assert manifest["subjects"]["ada"]["consent"] == {"ref": "form-1", "expires": "2027-01-31"}
    assert refused("again", VIDEO, cwd=folder) == [
        "ada-walk-t01-again.yaml: exists already; choose another name with -o",
        "ada-walk-t01-again.pipeline.yaml: exists already; choose another name with -o",
    ]


def test_again_after_the_manifest_and_the_video_moved(folder: Path) -> None:
    (folder / "m.yaml").unlink()
    shutil.move(folder / VIDEO, folder / "copy.mp4")
    done = light("again", "copy.mp4", "--output", "out", "-o", "new/x.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "new" / "x.pipeline.yaml").is_file()


def test_again_says_what_has_changed(folder: Path) -> None:
    (folder / "ada.jpg").write_bytes((folder / "bob.jpg").read_bytes())
    done = light("again", VIDEO, cwd=folder)
    assert done.returncode == 1
    assert "another digest than the video has: changed: subject.image" in done.stderr


def test_again_without_a_record(folder: Path) -> None:
    shutil.rmtree(folder / "out" / ".lynx" / "manifests")
    [line] = refused("again", VIDEO, cwd=folder)
    assert "the record of its run is missing" in line
    shutil.copy(folder / VIDEO, folder / "copy.mp4")
    [line] = refused("again", "copy.mp4", cwd=folder)
    assert line == "copy.mp4: no sidecar is beside it; name the output folder with --output"
