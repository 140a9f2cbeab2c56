"""A run leaves a record: a dropped --set is asked for, an approval is kept, and the run is repeated from its folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

from lynx_parallel.stages.video import probe
from tests.helpers import forked_command
from tests.helpers.light_command import errors_of

ONE = ("--only", "astronaut/beach")
NAME = "astronaut/beach-t01"


def test_a_run_is_recorded_asked_for_and_repeated(campaign: Path, tmp_path: Path) -> None:
    output = tmp_path / "renders" / "demo"
    fewer = ("--set", "sampling.num_inference_steps=2")
    first = forked_command.render(campaign, *ONE, *fewer, "--set", "video.crf=24", "--ulysses", "2", cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    sidecar = json.loads((output / f"{NAME}.json").read_text())
    record = output / ".lynx" / "manifests" / sidecar["run"]
    run = json.loads((record / "run.json").read_text())
    assert run["command"][1:] == [
        str(campaign), *ONE, *fewer, "--set", "video.crf=24", "--ulysses", "2",
    ]  # fmt: skip
    assert run["options"] == [["--ulysses", "2"]]
    latents = (output / f"{NAME}.latents.safetensors").read_bytes()
    video = (output / f"{NAME}.mp4").read_bytes()

    plain = forked_command.render(campaign, *ONE, *fewer, cwd=tmp_path)
    assert plain.returncode == 2
    assert len(errors_of(plain)) == 1
    assert "video.crf 24 → 18: --set video.crf=24 was given when they were made" in plain.stderr
    assert (output / f"{NAME}.mp4").read_bytes() == video

    approved = forked_command.render(campaign, *ONE, *fewer, "--yes", cwd=tmp_path)
    assert approved.returncode == 0, approved.stdout + approved.stderr
    assert "0 rendered, 1 encoded, 0 already done" in approved.stdout
    [approval] = map(json.loads, (output / ".lynx" / "approvals.jsonl").read_text().splitlines())
    assert approval["by"] == "--yes"

    # The first run again, after its manifest is gone, and what it made.
    for path in campaign.parent.glob("*.yaml"):
        path.unlink()
    for path in (output / "astronaut").iterdir():
        path.unlink()
    again = forked_command.render(record, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert re.search(r"^\[1/1\] rendered in .*: renders/demo/astronaut/beach-t01.mp4$", again.stdout, re.M)
    assert (output / f"{NAME}.latents.safetensors").read_bytes() == latents
    assert probe(output / f"{NAME}.mp4").frames == 9
    made = json.loads((output / f"{NAME}.json").read_text())
    assert made["digests"] == sidecar["digests"]
    assert made["layout"]["ulysses"] == 2

    # The shot alone again, by a manifest of its own.
    written = forked_command.render("again", output / f"{NAME}.mp4", "-o", "alone.yaml", cwd=tmp_path)
    assert written.returncode == 0, written.stdout + written.stderr
    alone = forked_command.render("alone.yaml", "--ulysses", "2", cwd=tmp_path)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert (tmp_path / "alone-output" / f"{NAME}.latents.safetensors").read_bytes() == latents
    assert made["run"] != sidecar["run"]
