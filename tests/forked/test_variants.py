"""A campaign that compares two pipelines: ranks load one after the other, and what was done stays done."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.helpers import forked_command
from tests.helpers.command import sidecars
from tests.helpers.repository import REPOSITORY


def test_two_pipelines(campaign: Path, tmp_path: Path) -> None:
    output = tmp_path / "renders" / "demo"
    options = ("--only", "astronaut/*", "--ulysses", "1")
    first = forked_command.render(campaign, *options, cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    lite = (REPOSITORY / "pipelines" / "demo-tiny.yaml").read_text()
    lite = re.sub(r"resampler: .*\n +id: .*\n +ref: .*\n", "resampler: demo:lite\n    id: demo:lite\n", lite)
    (campaign.parent / "lite.yaml").write_text(lite.replace("steps: 4", "steps: 2"))
    with campaign.open("a") as manifest:
        manifest.write("\nvariants: {full: {}, lite: {pipeline: ./lite.yaml}, strong: {sampling: {ip_scale: 2.0}}}\n")
    plan = forked_command.render("plan", campaign, *options[:2], "--json", cwd=tmp_path)
    assert {shot["name"]: shot["action"] for shot in json.loads(plan.stdout)["shots"]} == {
        f"astronaut/{prompt}-t01{variant}": "render" if variant else "done"
        for prompt in ("pumpkin", "beach")
        for variant in ("", "-lite", "-strong")
    }
    run = forked_command.render(campaign, *options, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "4 rendered, 0 encoded, 2 already done" in run.stdout
    assert run.stdout.count("next pipeline: lite") == 1
    assert re.findall(r"^\[(\d)/4\] rendered in .*?(strong|lite).mp4", run.stdout, re.M) == [
        ("1", "strong"), ("2", "strong"), ("3", "lite"), ("4", "lite")
    ]  # fmt: skip
    made = {path.stem: json.loads(path.read_text()) for path in sidecars(output)}
    lite_settings = made["beach-t01-lite"]["settings"]
    assert lite_settings["sampling.num_inference_steps"] == 2
    assert "weights.ref" not in lite_settings
    assert made["beach-t01-lite"]["shot"]["variant"] == "lite"
    assert made["beach-t01-lite"]["model"]["adapters"]["ref"] is None
    assert made["beach-t01-strong"]["settings"]["weights.ref"]
    again = forked_command.render(campaign, *options, cwd=tmp_path)
    assert "0 to render, 0 to encode, 6 done" in again.stdout
    records = sorted((output / ".lynx" / "manifests").glob("*/run.json"))
    record = json.loads(records[-1].read_text())
    assert [Path(one["pipeline"]).stem for one in record["pipelines"]] == ["demo-tiny", "lite"]
    assert record["pipelines"][0]["weights"]["ref"]
    assert "ref" not in record["pipelines"][1]["weights"]
