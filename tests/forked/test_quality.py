"""The gate, auditions and the safety checker in whole runs of the demo, whose frames show no face."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from lynx_parallel.output.auditions import read_audition
from lynx_parallel.output.folder import Output
from lynx_parallel.output.takes import attempt_seed, read_takes
from tests.helpers import forked_command
from tests.helpers.classifiers import write_classifier
from tests.helpers.command import lynx_render, wait_for

ONLY = ("--only", "drawn/pumpkin", "--ulysses", "1")


def rewrite(campaign: Path, more: str) -> None:
    text = campaign.read_text()
    campaign.write_text(text + more)


def steps_in(output: Path) -> list[tuple[str, int]]:
    """Returns the shot and number of each denoising step, as rank 0 logged it."""
    logs = output / ".lynx" / "logs"
    return [
        (str(log.parent.parent.relative_to(logs)), int(step))
        for log in sorted(logs.rglob("rank0.log"))
        if "ray" not in log.parts
        for step in re.findall(r" step (\d+)/4$", log.read_text(), re.M)
    ]


def test_the_winner_of_an_audition_has_the_bits_of_a_whole_render(campaign: Path, tmp_path: Path) -> None:
    output = tmp_path / "renders" / "demo"
    rewrite(campaign, "shots:\n- {subject: drawn, prompt: pumpkin, takes: 3, audition: {step: 2, keep: 1}}\n")
    run = forked_command.render(campaign, *ONLY, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "3 auditioned, 2 not chosen" in run.stdout
    made = steps_in(output)
    # Counted from outside: three takes to step 2, one from there to step 4, no step twice.
    assert Counter(shot for shot, _ in made) == {"drawn/pumpkin-t01": 4, "drawn/pumpkin-t02": 2, "drawn/pumpkin-t03": 2}
    assert len(set(made)) == len(made) == 8
    assert sorted(path.name for path in output.glob("drawn/*.mp4")) == ["pumpkin-t01.mp4"]
    record = read_audition(Output(output).audition("drawn/pumpkin-t02"))
    assert record is not None
    assert (record.step, record.total, record.score.state, record.similarity) == (2, 4, "no face", None)
    plan = json.loads(forked_command.render("plan", campaign, *ONLY, "--json", cwd=tmp_path).stdout)
    assert [row["action"] for row in plan["shots"]] == ["done", "not chosen", "not chosen"]
    winner = (output / "drawn" / "pumpkin-t01.latents.safetensors").read_bytes()
    text = campaign.read_text().replace(", audition: {step: 2, keep: 1}", "")
    campaign.write_text(text)
    whole = forked_command.render(campaign, *ONLY, "--set", f"output={tmp_path / 'whole'}", cwd=tmp_path)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert (tmp_path / "whole" / "drawn" / "pumpkin-t01.latents.safetensors").read_bytes() == winner


def test_a_killed_gate_renders_nothing_twice(campaign: Path, tmp_path: Path) -> None:
    output = Output(tmp_path / "renders" / "demo")
    rewrite(campaign, "quality: {min_identity: 0.9, attempts: 3}\n")
    candidates = output.private / "candidates"
    with forked_command.started(campaign, *ONLY, cwd=tmp_path) as driver:
        wait_for(lambda: output.journal.exists() and '"candidate"' in output.journal.read_text(), "a candidate", 0.02)
        driver.kill()
    first = len(list(candidates.rglob("s*.json")))
    assert 1 <= first < 3
    run = forked_command.render(campaign, *ONLY, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    seeds = [42, attempt_seed(42, 2, {42})]
    seeds.append(attempt_seed(42, 3, {*seeds}))
    events = [json.loads(line) for line in output.journal.read_text().splitlines()]
    assert sorted(one["seed"] for one in events if one["event"] == "candidate") == sorted(seeds)
    made = [tuple(step) for step in steps_in(output.folder)]
    assert len(made) <= 3 * 4 + 4  # the attempt that was killed may lose its steps
    assert "drawn/pumpkin-t01: below the gate: no face" in run.stdout
    sidecar = output.sidecar("drawn/pumpkin-t01")
    assert sidecar is not None
    assert sidecar["quality"]["passed"] is False
    assert sidecar["shot"]["seed"] == 42
    assert not output.takes.exists() or not read_takes(output.takes)
    assert sorted(path.name for path in candidates.rglob("*.mp4")) == sorted(f"s{seed}.mp4" for seed in seeds[1:])


def test_the_safety_checker(campaign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "renders" / "demo"
    write_classifier(tmp_path / "checker", unsafe=0.97)
    (tmp_path / "site.yaml").write_text("version: 1\nsafety: {checker: checker}\n")
    monkeypatch.setenv("LYNX_SITE", str(tmp_path / "site.yaml"))
    run = forked_command.render(campaign, *ONLY, cwd=tmp_path)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "withheld by the safety checker: nsfw 0.97 in frame" in run.stdout
    assert "0 blocked, 1 withheld" in run.stdout
    kept = [path for kind in ("mp4", "safetensors", "part", "jpg") for path in output.rglob(f"*.{kind}")]
    assert not [path for path in kept if "faces" not in path.parts and "prompts" not in path.parts]
    assert not list(output.rglob("pumpkin*.json"))
    before = steps_in(output)
    again = forked_command.render(campaign, *ONLY, cwd=tmp_path)
    assert again.returncode == 1
    assert "0 to render, 0 to encode, 0 done, 0 blocked, 1 withheld" in again.stdout
    assert steps_in(output) == before
    status = json.loads(lynx_render("status", output, "--json", cwd=tmp_path).stdout)
    assert status["counts"]["withheld"] == 1
    (tmp_path / "site.yaml").write_text("version: 1\nsafety: {checker: checker, threshold: 0.99}\n")
    allowed = forked_command.render(campaign, *ONLY, cwd=tmp_path)
    assert allowed.returncode == 0, allowed.stdout + allowed.stderr
    sidecar = Output(output).sidecar("drawn/pumpkin-t01")
    assert sidecar is not None
    assert len(sidecar["site"]) == 64
