"""The demo campaign through the whole command line: manifest, Ray, two ranks, USP, ffmpeg."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lynx_parallel.stages.video import probe, read_frames
from tests.helpers import forked_command
from tests.helpers.command import PATIENCE_S, environment, lynx_render
from tests.helpers.demo_output import NAMES, digests
from tests.helpers.fork_server import fast_children
from tests.helpers.golden_cases import relative_error
from tests.helpers.light_command import errors_of, light
from tests.helpers.repository import REPOSITORY

# Runs the command as ``lynx-render`` does. At the end it writes which heavy packages were imported.
WATCHED = """\
import atexit, json, runpy, sys
heavy = ("torch", "diffusers", "transformers", "xfuser", "insightface", "cv2")
atexit.register(lambda: open("imported.json", "w").write(json.dumps([m for m in heavy if m in sys.modules])))
runpy.run_module("lynx_parallel.cli.__main__", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class FirstRun:
    """The whole demo campaign, rendered by two ranks.

    Attributes:
        folder: working folder, with ``manifests/`` and ``renders/demo/``.
        imported: heavy packages that the driver process had imported at its end.
        latents: of each shot, as the run wrote them.
    """

    folder: Path
    run: subprocess.CompletedProcess[str]
    imported: list[str]
    latents: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def first(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    folder = tmp_path_factory.mktemp("first")
    shutil.copytree(REPOSITORY / "manifests", folder / "manifests")
    run = subprocess.run(
        [sys.executable, "-c", WATCHED, "manifests/demo.yaml", "--ulysses", "2"],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return FirstRun(
        folder, run, json.loads((folder / "imported.json").read_text()), latents_of(folder / "renders" / "demo")
    )


def latents_of(output: Path) -> dict[str, torch.Tensor]:
    return {name: load_file(output / f"{name}.latents.safetensors")["latents"] for name in sorted(NAMES)}


def sidecar(output: Path, name: str) -> dict[str, Any]:
    return json.loads((output / f"{name}.json").read_text())


def journal(output: Path, event: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (output / ".lynx" / "journal.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == event]


def test_the_driver_imports_no_torch(first: FirstRun) -> None:
    assert first.imported == []


def test_what_is_delivered(first: FirstRun) -> None:
    """Two ranks decoded rows of each video. Decoding it whole rounds a few values the other way, see parallel.vae."""
    output = first.folder / "renders" / "demo"
    exported = light("export", output, "--to", "delivery", cwd=first.folder)
    assert (exported.returncode, len(list((first.folder / "delivery").glob("*.mp4")))) == (0, 4), exported.stdout
    with fast_children():
        encoded = light("encode", output, "--format", "h264", "--to", "again", cwd=first.folder)
    assert encoded.returncode == 0, encoded.stdout
    for name in NAMES:
        render, again = (read_frames(folder / f"{name}.mp4").astype(int) for folder in (output, first.folder / "again"))
        assert abs(render - again).mean() < 0.1


def test_a_campaign_from_first_run_to_changed_prompt(first: FirstRun) -> None:
    folder, campaign = first.folder, first.folder / "manifests" / "demo.yaml"
    output = folder / "renders" / "demo"

    # Everything is rendered, by two ranks.
    assert "4 rendered, 0 encoded, 0 already done, 0 failed" in first.run.stdout
    videos, latents = digests(output, ".mp4"), digests(output, ".latents.safetensors")
    assert videos.keys() == latents.keys() == digests(output, ".json").keys() == NAMES
    for name in NAMES:
        info = probe(output / f"{name}.mp4")
        assert (info.width, info.height, info.frames, info.fps) == (64, 48, 9, 8)
        record = sidecar(output, name)
        assert record["layout"] == {"guidance": 1, "ring": 1, "ulysses": 2}
        assert len({rank["pid"] for rank in record["ranks"]}) == 2
        assert record["outputs"]["video"]["sha256"] == videos[name]
        assert record["outputs"]["latents"]["sha256"] == latents[name]
        assert record["outputs"]["video"]["size"] == (output / f"{name}.mp4").stat().st_size
        assert load_file(output / f"{name}.latents.safetensors")["latents"].shape == (1, 16, 3, 6, 8)
        for rank in (0, 1):
            log = output / ".lynx" / "logs" / name / "1" / f"rank{rank}.log"
            assert log.read_text().count("step") == 4
    assert len(set(videos.values())) == 4
    assert not list(output.rglob("*.part"))

    # Nothing is left to do, and no Ray is needed to see it.
    again = light(campaign, cwd=folder)
    assert again.returncode == 0
    assert "0 rendered, 0 encoded, 4 already done" in again.stdout
    assert "starting" not in again.stdout
    assert digests(output, ".mp4") == videos

    # Another crf: the saved latents are encoded, nothing is denoised.
    crf = ("--set", "video.crf=40")
    encoded = forked_command.render(campaign, *crf, cwd=folder, **forked_command.OWN_BITS)
    assert encoded.returncode == 0, encoded.stderr
    assert "0 rendered, 4 encoded" in encoded.stdout
    assert digests(output, ".latents.safetensors") == latents
    recoded = digests(output, ".mp4")
    assert all(recoded[name] != videos[name] for name in NAMES)
    for name in NAMES:
        assert "step" not in (output / ".lynx" / "logs" / name / "2" / "rank0.log").read_text()
    superseded = output / ".lynx" / "superseded"
    assert {hashlib.sha256(path.read_bytes()).hexdigest() for path in superseded.rglob("*.mp4")} == set(videos.values())

    # A changed prompt renders its two shots, a deleted output its one; the fourth is left alone.
    campaign.write_text(campaign.read_text().replace("carves a pumpkin", "paints a pumpkin"))
    (output / "drawn" / "beach-t01.latents.safetensors").unlink()
    planned = light("plan", campaign, "--shots", *crf, cwd=folder)
    assert re.search(r"render +drawn/pumpkin-t01: changed: prompt$", planned.stdout, re.M)
    assert re.search(r"render +drawn/beach-t01: latents missing or damaged$", planned.stdout, re.M)
    assert re.search(r"done +astronaut/beach-t01$", planned.stdout, re.M)
    changed = forked_command.render(campaign, *crf, cwd=folder, **forked_command.OWN_BITS)
    assert changed.returncode == 0, changed.stderr
    assert "3 rendered, 0 encoded, 1 already done" in changed.stdout
    rendered = digests(output, ".latents.safetensors")
    for name in NAMES:
        assert (rendered[name] == latents[name]) == ("beach" in name)
    old = {hashlib.sha256(path.read_bytes()).hexdigest() for path in superseded.rglob("*.latents.safetensors")}
    assert old == {latents[name] for name in NAMES if "pumpkin" in name}

    # What left the manifest is reported, and left alone.
    campaign.write_text(re.sub(r"(?m)^  beach:.*\n", "", campaign.read_text()))
    planned = light("plan", campaign, *crf, cwd=folder)
    assert re.findall(r"orphan +(\S+)", planned.stdout) == ["astronaut/beach-t01", "drawn/beach-t01"]
    assert [event["rendered"] for event in journal(output, "run_ended")] == [4, 0, 3]


def test_a_layout_that_does_not_fit_is_one_line(campaign: Path, tmp_path: Path) -> None:
    run = lynx_render(campaign, "--ulysses", "3", cwd=tmp_path)
    assert run.returncode == 2
    assert errors_of(run) == [
        "--ulysses 3: does not divide the model's 4 attention heads; one of 1, 2, 4 (astronaut/pumpkin-t01)"
    ]
    assert not (tmp_path / "renders").exists()


def test_bad_pictures_and_a_long_prompt(campaign: Path, tmp_path: Path) -> None:
    """One picture is cut off, one file is no picture, and one prompt is too long for the model.

    Each costs its own shots alone. The sidecar has the words that the model did not see.
    """
    output, faces = tmp_path / "renders" / "demo", campaign.parent / "faces"
    # Cut off behind its header, where plan does not look.
    (faces / "astronaut.jpg").write_bytes((faces / "astronaut.jpg").read_bytes()[:5000])
    (faces / "text.jpg").write_text("no picture")
    words = " ".join(f"word{number}" for number in range(100))
    text = campaign.read_text().replace("the wind in the hair.", f"the wind in the hair. {words}")
    campaign.write_text(text.replace("  drawn:\n", "  text: {image: faces/text.jpg, vars: {person: man}}\n  drawn:\n"))
    run = forked_command.render(campaign, cwd=tmp_path)
    assert run.returncode == 1
    assert "2 rendered, 0 encoded, 0 already done, 2 failed, 2 blocked" in run.stdout
    assert re.search(r"^astronaut/beach-t01: failed: .*astronaut\.jpg", run.stdout, re.M)
    assert re.search(r"^text/beach-t01: blocked: .*text\.jpg: not a picture", run.stdout, re.M)
    assert run.stdout.count("grouped 2 of 2 ranks") == 1  # the gang keeps working
    assert digests(output, ".mp4").keys() == digests(output, ".json").keys() == {"drawn/pumpkin-t01", "drawn/beach-t01"}
    warned = [line for line in run.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 2
    (lost,) = sidecar(output, "drawn/beach-t01")["warnings"]
    assert re.fullmatch(r"prompt: \d+ tokens, the model reads 512; lost: 'word\d+ .* word99'", lost)
    assert sidecar(output, "drawn/pumpkin-t01")["warnings"] == []


def test_two_gangs_of_one_rank_give_the_latents_of_two_ranks(first: FirstRun, campaign: Path, tmp_path: Path) -> None:
    """Each gang takes a subject of its own first. Which renders the other shots depends on their speed."""
    output = tmp_path / "renders" / "demo"
    run = forked_command.render(campaign, "--gangs", "2", "--ulysses", "1", cwd=tmp_path)
    assert run.returncode == 0, run.stdout
    assert "starting 2 gangs of 1 rank on cpu" in run.stdout
    assert "4 rendered" in run.stdout
    records = {name: sidecar(output, name) for name in NAMES}
    assert all(record["layout"] == {"guidance": 1, "ring": 1, "ulysses": 1} for record in records.values())
    pids = {name: record["ranks"][0]["pid"] for name, record in records.items()}
    assert pids["astronaut/pumpkin-t01"] != pids["drawn/pumpkin-t01"]
    assert len(set(pids.values())) == 2
    assert len(journal(output, "done")) == len(journal(output, "attempt")) == 4
    made = latents_of(output)
    assert len(made) == 4
    for name, latents in made.items():
        assert relative_error(latents, first.latents[name]) <= 1e-6
