"""lynx-render verify: what is damaged, missing or foreign in an output folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from lynx_parallel.engine.record import write_record
from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.inputs.records import Request
from lynx_parallel.output.atomic import part_path
from lynx_parallel.output.checksums import add_checksum
from lynx_parallel.output.finished_latents import latents_metadata, unpublished_path
from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import Journal
from lynx_parallel.output.verify import verify
from lynx_parallel.stages.resume_state import save_resume_state
from tests.helpers.campaigns import MANIFEST, edit_sidecar, finish, load, tree, write
from tests.helpers.damage import flip, state
from tests.helpers.light_command import errors_of, lynx_render
from tests.helpers.planned import parts_of

ADA = "ada/walk-t01"
RECORDED = Path(__file__).parents[1] / "recorded"


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    """Four shots, all finished, and the journal of their run."""
    write(tmp_path)
    campaign = load(tmp_path)
    journal = Journal(Output(campaign.output).journal)
    for shot in campaign.shots:
        journal.append("attempt", name=shot.name)
        finish(campaign, shot)
    journal.close()
    return campaign


def found(campaign: Campaign, *, manifest: bool = True) -> tuple[list[tuple[str, str]], int]:
    """(kind, path) of each finding, and the exit code; nothing may be written."""
    before = tree(campaign.output)
    names = {shot.name for shot in campaign.shots}
    report = verify(Output(campaign.output), *((names, names) if manifest else ()))
    assert tree(campaign.output) == before
    assert all(finding.reason and "\n" not in finding.reason for finding in report.findings)
    return sorted((finding.kind, finding.path) for finding in report.findings), report.exit_code


@pytest.mark.parametrize("event", ["not chosen", "auditioned", "withheld"])
def test_shots_that_need_no_video_are_not_missing(campaign: Campaign, event: str) -> None:
    output = Output(campaign.output)
    for kind in ("video", "latents", "sidecar"):
        output.path(ADA, kind).unlink()
    folder = campaign.path.parent
    assert lynx_render("verify", "m.yaml", cwd=folder).returncode == 1
    journal = Journal(output.journal)
    journal.append(event, name=ADA)
    journal.close()
    done = lynx_render("verify", "m.yaml", cwd=folder)
    assert done.returncode == 0, done.stdout


def test_all_is_well(campaign: Campaign) -> None:
    assert found(campaign) == found(campaign, manifest=False) == ([], 0)
    assert verify(Output(campaign.output)).files == 8


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize("kind", ["video", "latents"])
def test_outputs(campaign: Campaign, kind: str, manifest: bool) -> None:
    path = Output(campaign.output).path(ADA, kind)
    name = f"{ADA}.mp4" if kind == "video" else f"{ADA}.latents.safetensors"
    flip(path, 5)  # the same size and mtime
    assert found(campaign, manifest=manifest) == ([("damaged", name)], 1)
    path.write_bytes(path.read_bytes()[:-1])
    assert found(campaign, manifest=manifest) == ([("damaged", name)], 1)
    path.unlink()
    assert found(campaign, manifest=manifest) == ([("missing", name)], 1)
    path.mkdir()
    assert found(campaign, manifest=manifest) == ([("damaged", name)], 1)


@pytest.mark.parametrize("manifest", [True, False])
def test_sidecars(campaign: Campaign, manifest: bool) -> None:
    path = Output(campaign.output).path(ADA, "sidecar")
    edit_sidecar(path, outputs={"video": None})
    assert found(campaign, manifest=manifest) == ([("damaged", f"{ADA}.json")], 1)
    path.write_text("{")
    assert found(campaign, manifest=manifest) == ([("damaged", f"{ADA}.json")], 1)
    path.unlink()
    assert found(campaign, manifest=manifest) == ([("missing", f"{ADA}.json")], 1)


def test_what_is_not_ours_is_no_fault(campaign: Campaign) -> None:
    output = Output(campaign.output)
    (output.folder / "notes.txt").write_text("mine")
    (output.folder / "ada" / "cut.mp4").write_text("mine")
    (output.folder / "ada" / "cut.mp4.1.part").write_text("a download")
    part_path(output.path(ADA, "video")).write_text("half")
    expected = [
        ("foreign", "ada/cut.mp4"), ("foreign", "ada/cut.mp4.1.part"), ("foreign", "notes.txt"),
        ("unfinished", f"{ADA}.mp4.1.part"),
    ]  # fmt: skip
    assert found(campaign) == found(campaign, manifest=False) == (expected, 0)


def test_shots_of_the_manifest(campaign: Campaign, tmp_path: Path) -> None:
    fewer = load(tmp_path, MANIFEST.replace(", run: 'A {person} runs.'", ""))
    assert found(fewer) == ([("orphan", "ada/run-t01.json"), ("orphan", "bob/run-t01.json")], 0)
    more = load(tmp_path, MANIFEST.replace("run: '", "sit: 'A {person} sits.', run: '"))
    assert found(more) == ([("missing", "ada/sit-t01.mp4"), ("missing", "bob/sit-t01.mp4")], 1)
    assert found(more, manifest=False) == ([], 0)
    # An orphan is checked all the same.
    flip(Output(fewer.output).path("ada/run-t01", "video"), 5)
    assert ("damaged", "ada/run-t01.mp4") in found(fewer)[0]


@pytest.mark.parametrize("manifest", [True, False])
def test_a_finished_shot_whose_files_are_all_gone(campaign: Campaign, manifest: bool) -> None:
    """A subject's folder was lost, or a mount is not there. The journal still knows the shots."""
    journal = Journal(Output(campaign.output).journal)
    for shot in campaign.shots:
        journal.append("done", name=shot.name, video="0" * 64)
    journal.append("attempt", name="ada/never-t01")
    journal.close()
    shutil.rmtree(campaign.output / "ada")
    findings = [("missing", "ada/run-t01.mp4"), ("missing", f"{ADA}.mp4")]
    assert found(campaign, manifest=manifest) == (findings, 1)
    report = verify(Output(campaign.output), {ADA} if manifest else None)
    assert {"the journal says" in finding.reason for finding in report.findings if finding.kind == "missing"} == {True}


def test_what_is_kept_for_later_runs(campaign: Campaign) -> None:
    output, digest = Output(campaign.output), "d" * 64
    save_resume_state(output.resume_state(digest), state(), digest)
    latents = add_checksum(save({"latents": torch.zeros(1, 16, 3, 6, 8)}), latents_metadata(digest, {}))
    for path in (unpublished_path(output, "ada/sit-t01"), output.private / "prompts" / "a.safetensors"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(latents)
    output.supersede(ADA, ("video", "sidecar"))  # the latents stay; what moved aside has a copy of the sidecar
    finish(campaign, campaign.shots[0])
    assert found(campaign) == ([], 0)
    [old] = output.private.glob("superseded/*/ada/*.mp4")
    kept = [
        output.resume_state(digest),
        unpublished_path(output, "ada/sit-t01"),
        output.private / "prompts" / "a.safetensors",
        old,
    ]
    for path in kept:
        flip(path, 8 * path.stat().st_size - 1)
    damaged = sorted(("damaged", str(path.relative_to(output.folder))) for path in kept)
    assert found(campaign) == found(campaign, manifest=False) == (damaged, 1)


def test_finished_latents_without_a_video(campaign: Campaign) -> None:
    output = Output(campaign.output)
    for kind in ("video", "sidecar"):
        output.path(ADA, kind).unlink()
    path = output.path(ADA, "latents")
    path.write_bytes(add_checksum(save({"latents": torch.zeros(9)}), latents_metadata("d" * 64, {})))
    assert found(campaign) == ([("missing", f"{ADA}.mp4")], 1)
    flip(path, 8 * path.stat().st_size - 1)
    assert found(campaign) == ([("damaged", f"{ADA}.latents.safetensors"), ("missing", f"{ADA}.mp4")], 1)


def test_a_folder_of_an_earlier_version(tmp_path: Path) -> None:
    """Its resume state has no checksum. It may have been copied."""
    shutil.copytree(RECORDED / "full", tmp_path / "full", copy_function=shutil.copyfile)
    report = verify(Output(tmp_path / "full"))
    assert (report.findings, report.files) == ([], 11)


def command(*arguments: str | Path) -> tuple[int, str, str]:
    run = subprocess.run(
        [sys.executable, "-m", "lynx_parallel.cli", "verify", *map(str, arguments)],
        env=os.environ, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if run.returncode > 1:
        return run.returncode, run.stdout, "".join(f"{line}\n" for line in errors_of(run))
    return run.returncode, run.stdout, run.stderr


def test_the_command(campaign: Campaign, tmp_path: Path) -> None:
    code, out, err = command(campaign.path)
    assert (code, err) == (0, "")
    assert out.endswith("8 files read, 172 B: 0 damaged, 0 missing, 0 orphan, 0 unfinished, 0 foreign\n")
    (campaign.output / "notes.txt").write_text("mine")
    flip(Output(campaign.output).path(ADA, "video"), 5)
    before = tree(tmp_path)
    for target in (campaign.path, campaign.output):
        code, out, err = command(target)
        assert (code, err) == (1, "")
        lines = out.splitlines()
        assert lines[1] == f"damaged     {ADA}.mp4: its content differs from the sidecar's checksum"
        assert lines[2] == "foreign     notes.txt: not a file of this folder's shots"
        code, out, _ = command(target, "--json")
        answer: dict[str, Any] = json.loads(out)
        assert (code, answer["exit_code"], answer["files"]) == (1, 1, 8)
        assert [(one["kind"], one["path"]) for one in answer["findings"]] == [
            ("damaged", f"{ADA}.mp4"), ("foreign", "notes.txt")
        ]  # fmt: skip
    assert tree(tmp_path) == before


@pytest.mark.parametrize("kept", [True, False])
def test_a_record_stands_for_its_manifest(campaign: Campaign, kept: bool) -> None:
    record = Output(campaign.output).record("2026")
    write_record(record, campaign, parts_of(campaign, {}), Request(set=("sampling.seed=7",)), "now")
    if not kept:
        campaign.path.unlink()
    code, out, err = command(record)
    assert (code, err) == (0, "")
    assert "8 files read" in out
    Output(campaign.output).path(ADA, "video").unlink()
    code, out, _ = command(record / "run.json")
    assert code == 1
    assert f"missing     {ADA}.mp4" in out


def test_what_is_no_output_folder(campaign: Campaign, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "above").mkdir()
    campaign.output.rename(tmp_path / "above" / "out")
    shutil.rmtree(tmp_path / "above" / "out" / ".lynx")
    for name in ("empty", "above"):
        code, out, err = command(tmp_path / name)
        assert (code, out) == (2, "")
        assert err == f"{tmp_path / name}: not an output folder: it holds neither .lynx nor a sidecar\n"
    for name in ("none.yaml", "none/"):
        code, _, err = command(f"{tmp_path}/{name}")
        assert (code, err) == (2, f"{tmp_path}/{name}: no such manifest or output folder\n")
    code, _, err = command(tmp_path / "none.yaml")
    assert (code, err.count("\n")) == (2, 1)
