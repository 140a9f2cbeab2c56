"""Finished shots that would be made again: by the user's own edit, or for a cause from outside."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel
from safetensors.numpy import save

import lynx_parallel
from lynx_parallel.cli.approve import approve
from lynx_parallel.engine.record import write_record
from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.inputs.records import Request
from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.output.approvals import Approvals
from lynx_parallel.output.checksums import add_checksum
from lynx_parallel.output.finished_latents import latents_metadata, unpublished_path
from lynx_parallel.output.folder import Output
from lynx_parallel.plan import digests as identity
from lynx_parallel.plan.changes import Change, find_changes
from lynx_parallel.plan.plan import make_plan
from tests.helpers.campaigns import FULL, MANIFEST, WEIGHTS, finish, write
from tests.helpers.planned import parts_of

TODAY = date(2026, 7, 1)
RUN = "2026-07-01T120000.000+0000"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A campaign beside which a shipped pipeline, ``full``, has been installed."""
    (tmp_path / "installed" / "pipelines").mkdir(parents=True)
    (tmp_path / "installed" / "pipelines" / "full.yaml").write_text(FULL)
    for module in ("lynx_parallel.inputs.pipeline_files", "lynx_parallel.engine.record"):
        monkeypatch.setattr(f"{module}.shipped_dir", lambda kind: tmp_path / "installed" / kind)
    monkeypatch.setattr("lynx_parallel.inputs.pipeline_files.shipped_names", lambda kind: ["full"])
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine")
    return tmp_path


SHIPPED = MANIFEST.replace("./full.yaml", "full")


def made(
    folder: Path, *sets: str, manifest: str = MANIFEST, kinds: tuple[str, ...] = ("latents", "video"), run: str = RUN
) -> Campaign:
    """All shots finished by one run."""
    (folder / "mine" / "m.yaml").write_text(manifest)
    campaign = load_campaign(folder / "mine" / "m.yaml", sets)
    write_record(Output(campaign.output).record(run), campaign, parts_of(campaign, WEIGHTS), Request(set=sets), "now")
    for shot in campaign.shots:
        model = campaign.pipeline.model.model_dump()
        finish(campaign, shot, kinds=kinds, run=run, model=model, lynx_parallel=lynx_parallel.__version__)
    return campaign


def found(folder: Path, *sets: str, weights: Mapping[str, str] = WEIGHTS) -> list[Change]:
    """What the next run finds."""
    campaign = load_campaign(folder / "mine" / "m.yaml", sets)
    plan = make_plan(campaign, weights, today=TODAY)
    return find_changes(plan.items, campaign, weights, sets)


def brief(changes: list[Change]) -> list[tuple[int, str, tuple[str, ...], list[str]]]:
    return [(len(c.names), c.action, c.settings, [cause.text for cause in c.causes]) for c in changes]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# A --set that was dropped, changed, added, or moved into a file


@pytest.mark.parametrize(
    ("option", "action", "setting"),
    [
        ("video.crf=24", "encode", "video.crf 24 → 18"),
        ("sampling.fps=24", "encode", "sampling.fps 24.0 → 16.0"),
        ("sampling.guidance_scale=4", "render", "sampling.guidance_scale 4.0 → 5.0"),
        ("sampling.seed=7", "render", "sampling.seed 7 → 42"),
        ("sampling.negative_prompt=a hat", "render", "sampling.negative_prompt a hat →"),
    ],
)
def test_a_dropped_set_asks(folder: Path, option: str, action: str, setting: str) -> None:
    made(folder, option)
    assert brief(found(folder)) == [
        (4, action, (setting,), [f"--set {shlex.quote(option)} was given when they were made"])
    ]
    assert found(folder, option) == []


def test_latents_that_were_not_saved(folder: Path) -> None:
    made(folder, "save_latents=false", kinds=("video",))
    cause = "--set save_latents=false was given when they were made"
    assert brief(found(folder)) == [(4, "render", ("save_latents false → true",), [cause])]
    edit(folder / "mine" / "m.yaml", "output: out\n", "output: out\nsave_latents: false\n")
    assert found(folder) == []


def test_sets_of_another_value_or_given_for_the_first_time_proceed(folder: Path) -> None:
    made(folder, "video.crf=24")
    assert brief(found(folder, "video.crf=30")) == [(4, "encode", ("video.crf 24 → 30",), [])]
    assert brief(found(folder, "video.crf=24", "sampling.seed=7")) == [(4, "render", ("sampling.seed 42 → 7",), [])]


@pytest.mark.parametrize("key", ["video: {crf: %s}", "sampling: {guidance_scale: %s}"])
@pytest.mark.parametrize("edited", [False, True])
def test_a_set_that_moved_into_the_manifest(folder: Path, key: str, edited: bool) -> None:
    name = "video.crf" if "crf" in key else "sampling.guidance_scale"
    made(folder, f"{name}=24")
    value = "25" if edited else "24"
    edit(folder / "mine" / "m.yaml", "output: out\n", f"output: out\n{key % value}\n")
    assert [change.causes for change in found(folder)] == [()] * edited


def test_a_dropped_set_beside_an_edit_of_another_key(folder: Path) -> None:
    made(folder, "video.crf=24")
    edit(folder / "mine" / "m.yaml", "A {person} walks.", "A {person} hikes.")
    cause = "--set video.crf=24 was given when they were made"
    assert brief(found(folder)) == [
        (2, "render", ("prompt", "video.crf 24 → 18"), [cause]),
        (2, "encode", ("video.crf 24 → 18",), [cause]),
    ]


# The user's own edits


def _new_picture(mine: Path) -> None:
    (mine / "ada.jpg").write_bytes(b"another picture of ada")


LANDMARKS = "[9, 11]]\n    vars: {person: w"
EDITS: dict[str, tuple[Callable[[Path], object], int]] = {
    "a prompt": (lambda mine: edit(mine / "m.yaml", "walks", "strolls"), 2),
    "a setting": (lambda mine: edit(mine / "m.yaml", "output: out", "output: out\nsampling: {seed: 3}"), 4),
    "a subject's var": (lambda mine: edit(mine / "m.yaml", "person: woman", "person: lady"), 2),
    "the pipeline": (lambda mine: edit(mine / "full.yaml", "num_frames: 9", "num_frames: 5"), 4),
    "another pipeline": (lambda mine: edit(mine / "m.yaml", "./full.yaml", "./lite.yaml"), 4),
    "a picture": (_new_picture, 2),
    "an embedding": (lambda mine: (mine / "bob.npy").write_bytes(b"another"), 2),
    "landmarks": (lambda mine: edit(mine / "m.yaml", "[9, 10]]\n    vars: {person: w", LANDMARKS), 2),
}  # fmt: skip


@pytest.mark.parametrize("what", EDITS)
def test_an_edit_proceeds(folder: Path, what: str) -> None:
    made(folder)
    how, shots = EDITS[what]
    how(folder / "mine")
    changes = found(folder)
    assert sum(len(change.names) for change in changes) == shots
    assert {change.causes for change in changes} == {()}


@pytest.mark.parametrize("kind", ["table", "prompt file"])
def test_an_edited_table_or_prompt_file_proceeds(folder: Path, kind: str) -> None:
    mine = folder / "mine"
    (mine / "walk.txt").write_text("A {person} walks.")
    (mine / "shots.csv").write_text("subject,prompt,seed\nada,walk,1\nbob,walk,1\n")
    prompts = "prompts: {walk: {file: walk.txt}}\nshots: {from: shots.csv}\n"
    made(folder, manifest=MANIFEST.partition("prompts:")[0] + prompts)
    assert found(folder) == []
    if kind == "table":
        edit(mine / "shots.csv", "bob,walk,1", "bob,walk,2")
        assert brief(found(folder)) == [(1, "render", ("sampling.seed 1 → 2",), [])]
    else:
        edit(mine / "walk.txt", "walks", "strolls")
        assert brief(found(folder)) == [(2, "render", ("prompt",), [])]


# Causes from outside


def test_a_shipped_pipeline_that_changed_asks(folder: Path) -> None:
    made(folder, manifest=SHIPPED)
    assert found(folder) == []
    edit(folder / "installed" / "pipelines" / "full.yaml", "crf: 18", "crf: 20")
    edit(folder / "installed" / "pipelines" / "full.yaml", "num_frames: 9", "num_frames: 5")
    cause = "the pipeline full, which comes with lynx-parallel, has changed"
    settings = ("sampling.num_frames 9 → 5", "video.crf 18 → 20")
    [change] = found(folder)
    assert brief([change]) == [(4, "render", settings, [cause])]
    # What the line advises keeps the shots.
    copy = folder / "mine" / "out" / ".lynx" / "manifests" / RUN / "full.yaml"
    assert [cause.remedy for cause in change.causes] == [f"set pipeline: {copy}"]
    edit(folder / "mine" / "m.yaml", "pipeline: full", f"pipeline: {copy}")
    assert found(folder) == []


def test_a_shipped_pipeline_of_other_weights_asks(folder: Path) -> None:
    made(folder, manifest=SHIPPED)
    edit(folder / "installed" / "pipelines" / "full.yaml", "id: demo:full", "id: demo:lite")
    cause = "the pipeline full, which comes with lynx-parallel, has changed"
    assert brief(found(folder, weights={**WEIGHTS, "id": "0" * 64})) == [(4, "render", ("weights",), [cause])]


def test_a_setting_that_the_manifest_gives_is_not_the_pipeline_s(folder: Path) -> None:
    manifest = SHIPPED.replace("output: out", "output: out\nsampling: {num_frames: 13}")
    made(folder, manifest=manifest)
    edit(folder / "installed" / "pipelines" / "full.yaml", "num_frames: 9", "num_frames: 5")
    assert found(folder) == []
    edit(folder / "mine" / "m.yaml", "num_frames: 13", "num_frames: 17")
    assert brief(found(folder)) == [(4, "render", ("sampling.num_frames 13 → 17",), [])]


@pytest.mark.parametrize("name", ["id", "resampler", "base/vae/config.json"])
def test_other_weights_under_the_same_name_ask(folder: Path, name: str) -> None:
    made(folder)
    [change] = found(folder, weights={**WEIGHTS, name: "0" * 64})
    called = {"id": "demo:full", "resampler": "demo:lite"}.get(name, "demo:tiny")
    assert brief([change]) == [(4, "render", ("weights",), [f"the files of {called} have another content"])]


def test_other_weights_under_another_name_proceed(folder: Path) -> None:
    made(folder)
    edit(folder / "mine" / "full.yaml", "id: demo:full", "id: demo:lite")
    assert [change.causes for change in found(folder, weights={**WEIGHTS, "id": "0" * 64})] == [()]
    # but not those of the other files
    changes = found(folder, weights={**WEIGHTS, "id": "0" * 64, "resampler": "0" * 64})
    assert [cause.text for cause in changes[0].causes] == ["the files of demo:lite have another content"]


def test_another_numerics_asks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(folder)
    monkeypatch.setattr(identity, "NUMERICS", 2)
    monkeypatch.setattr(lynx_parallel, "__version__", "9.0")
    [change] = found(folder)
    assert brief([change])[0][2:] == (("numerics 1 → 2",), ["lynx-parallel 0.1.0 made them, this is 9.0"])


def test_a_comment_in_a_shipped_pipeline_is_no_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the line that names the schema, which a new version has added."""
    made(folder, manifest=SHIPPED)
    edit(folder / "installed" / "pipelines" / "full.yaml", "version: 1", "# $schema=pipeline.json\nversion: 1")
    assert found(folder) == []
    monkeypatch.setattr(identity, "NUMERICS", 2)
    monkeypatch.setattr(lynx_parallel, "__version__", "9.0")
    [change] = found(folder)
    assert [cause.text for cause in change.causes] == ["lynx-parallel 0.1.0 made them, this is 9.0"]


def test_another_default_of_the_package_asks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's files are the same, and give another value today."""
    made(folder)
    monkeypatch.setattr(lynx_parallel, "__version__", "9.0")
    digested = identity.digested

    def of_today(settings: BaseModel) -> dict[str, Any]:
        return digested(settings) | ({"flow_shift": 4.0} if isinstance(settings, Sampling) else {})

    monkeypatch.setattr(identity, "digested", of_today)
    changes = found(folder)
    assert [change.settings for change in changes] == [("sampling.flow_shift 3.0 → 4.0",)]
    assert [cause.text for cause in changes[0].causes] == ["lynx-parallel 0.1.0 made them, this is 9.0"]
    edit(folder / "mine" / "m.yaml", "A {person} walks.", "A {person} hikes.")
    assert {len(change.causes) for change in found(folder)} == {1}  # an edit elsewhere does not hide it


def test_an_edit_and_a_cause_from_outside(folder: Path) -> None:
    """Ada's picture is new; the weights are others: all shots ask, and both lines are shown."""
    made(folder)
    _new_picture(folder / "mine")
    cause = "the files of demo:full have another content"
    assert brief(found(folder, weights={**WEIGHTS, "id": "0" * 64})) == [
        (4, "render", ("subject.image", "weights"), [cause])
    ]


def test_edits_of_some_shots_do_not_ask_for_those(folder: Path) -> None:
    """Two runs: ada's shots were made with a --set, bob's without; then bob's text is edited."""
    campaign = made(folder)
    forced = load_campaign(folder / "mine" / "m.yaml", ["video.crf=24"], ["ada/*"])
    write_record(
        Output(campaign.output).record("second"),
        forced,
        parts_of(forced),
        Request(set=("video.crf=24",), only=("ada/*",)),
        "",
    )
    for shot in forced.shots:
        finish(forced, shot, run="second")
    edit(folder / "mine" / "m.yaml", "person: man", "person: boy")
    assert brief(found(folder)) == [
        (2, "encode", ("video.crf 24 → 18",), ["--set video.crf=24 was given when they were made"]),
        (2, "render", ("prompt",), []),
    ]


# Where the record is missing, or cannot be read again


def test_without_records_only_what_the_sidecar_shows_asks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = made(folder, "video.crf=24")
    shutil.rmtree(Output(campaign.output).private)
    assert [change.causes for change in found(folder)] == [()]
    changes = found(folder, "video.crf=24", weights={**WEIGHTS, "id": "0" * 64})
    assert [cause.text for cause in changes[0].causes] == ["the files of demo:full have another content"]
    for shot in campaign.shots:
        finish(campaign, shot)  # a sidecar without model and run
    assert [change.causes for change in found(folder, weights={**WEIGHTS, "id": "0" * 64})] == [()]


def test_a_damaged_record_asks_nothing(folder: Path) -> None:
    campaign = made(folder, "video.crf=24")
    (Output(campaign.output).record(RUN) / "run.json").write_text("{")
    assert [change.causes for change in found(folder)] == [()]


def test_a_picture_that_is_gone(folder: Path) -> None:
    """Then the inputs cannot be read again; what the record itself shows still asks."""
    made(folder, "video.crf=24")
    (folder / "mine" / "bob.jpg").unlink()
    text = (folder / "mine" / "m.yaml").read_text()
    (folder / "mine" / "m.yaml").write_text(text[: text.index("  bob:")] + text[text.index("prompts:") :])
    cause = "--set video.crf=24 was given when they were made"
    assert brief(found(folder)) == [(2, "encode", ("video.crf 24 → 18",), [cause])]


def test_a_campaign_that_was_moved(folder: Path) -> None:
    made(folder, "video.crf=24", manifest=SHIPPED)
    (folder / "mine").rename(folder / "moved")
    (folder / "mine").symlink_to(folder / "moved")
    edit(folder / "installed" / "pipelines" / "full.yaml", "num_frames: 9", "num_frames: 5")
    [change] = found(folder, "video.crf=24")
    assert [cause.text for cause in change.causes] == ["the pipeline full, which comes with lynx-parallel, has changed"]
    (folder / "mine").unlink()
    campaign = load_campaign(folder / "moved" / "m.yaml", ["video.crf=24"])
    plan = make_plan(campaign, WEIGHTS, today=TODAY)
    assert find_changes(plan.items, campaign, WEIGHTS, ["video.crf=24"]) == [change]


def test_damaged_and_new_shots_are_no_changes(folder: Path) -> None:
    campaign = made(folder)
    Output(campaign.output).path("ada/walk-t01", "video").unlink()
    Output(campaign.output).path("ada/run-t01", "latents").write_bytes(b"x")
    edit(folder / "mine" / "m.yaml", "prompts: {", "prompts: {swim: 'A {person} swims.', ")
    assert found(folder) == []


# Asking


@pytest.fixture
def asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Change]:
    monkeypatch.delenv("LYNX_YES", raising=False)
    made(folder, "video.crf=24")
    return found(folder)


def test_without_a_terminal_one_line_says_what_to_do(asked: list[Change], tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(InputErrors) as caught:
        approve(asked, Approvals(tmp_path / "approvals"), False, lines.append)
    assert caught.value.lines == [
        "4 finished shots would be made again, not because of your edits: video.crf 24 → 18: --set video.crf=24 was "
        "given when they were made. To keep the finished shots, give --set video.crf=24. To make them again, add --yes "
        "or set LYNX_YES=1."
    ]
    assert lines == [], "the refusal alone gives the reason"
    assert not (tmp_path / "approvals").exists()
    approve(asked, Approvals(tmp_path / "approvals"), True, lines.append)
    assert lines == [
        "4 finished shots to encode again: video.crf 24 → 18 (--set video.crf=24 was given when they were made)"
    ]


@pytest.mark.parametrize("how", ["--yes", "LYNX_YES", "terminal"])
def test_an_approval_survives(asked: list[Change], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    with monkeypatch.context() as patch:
        if how == "LYNX_YES":
            patch.setenv("LYNX_YES", "1")
        if how == "terminal":
            patch.setattr("lynx_parallel.cli.approve._on_a_terminal", lambda: True)
            patch.setattr("typer.confirm", lambda text, err: True)
        approve(asked, Approvals(tmp_path / "approvals"), how == "--yes", lambda line: None)
    approve(asked, Approvals(tmp_path / "approvals"), False, lambda line: None)  # a job that is queued again


def test_an_approval_is_for_those_digests(folder: Path, asked: list[Change], tmp_path: Path) -> None:
    approvals = Approvals(tmp_path / "approvals")
    approve(asked, approvals, True, lambda line: None)
    with (tmp_path / "approvals").open("ab") as file:
        file.write(b'\n{"transitions": ["half')
    other = found(folder, weights={**WEIGHTS, "id": "0" * 64})
    with pytest.raises(InputErrors, match="the files of demo:full"):
        approve(other, Approvals(tmp_path / "approvals"), False, lambda line: None)
    approve(other, Approvals(tmp_path / "approvals"), True, lambda line: None)
    approve([*asked, *other], Approvals(tmp_path / "approvals"), False, lambda line: None)


def test_an_approved_render_may_end_as_an_encoding(folder: Path, tmp_path: Path) -> None:
    """The approved run rendered the latents and was killed before the video. The next one only encodes."""
    campaign = made(folder, "sampling.guidance_scale=3")
    rendered = found(folder)
    assert [change.action for change in rendered] == ["render"]
    approve(rendered, Approvals(tmp_path / "approvals"), True, lambda line: None)
    output, shots = Output(campaign.output), load_campaign(folder / "mine" / "m.yaml").shots
    for item in make_plan(load_campaign(folder / "mine" / "m.yaml"), WEIGHTS, today=TODAY).items:
        path = unpublished_path(output, item.shot.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(add_checksum(save({"latents": np.zeros(1)}), latents_metadata(item.digests.resume, None)))
    encoded = found(folder)
    assert [(change.action, len(change.names)) for change in encoded] == [("encode", len(shots))]
    approve(encoded, Approvals(tmp_path / "approvals"), False, lambda line: None)


def test_an_approved_encoding_may_find_its_latents_damaged(folder: Path, tmp_path: Path) -> None:
    """The approved run moved them aside and was killed. The next one renders."""
    campaign = made(folder, "video.crf=24")
    approve(found(folder), Approvals(tmp_path / "approvals"), True, lambda line: None)
    for shot in campaign.shots:
        Output(campaign.output).path(shot.name, "latents").unlink()
    again = found(folder)
    assert [(change.action, len(change.names)) for change in again] == [("render", len(campaign.shots))]
    approve(again, Approvals(tmp_path / "approvals"), False, lambda line: None)


def test_a_no_on_the_terminal_is_a_no(asked: list[Change], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lynx_parallel.cli.approve._on_a_terminal", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda text, err: False)
    with pytest.raises(InputErrors, match="To keep the finished shots"):
        approve(asked, Approvals(tmp_path / "approvals"), False, lambda line: None)


@pytest.mark.parametrize("value", ["", "0", "no"])
def test_lynx_yes_is_1(asked: list[Change], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("LYNX_YES", value)
    with pytest.raises(InputErrors):
        approve(asked, Approvals(tmp_path / "approvals"), False, lambda line: None)


def test_own_edits_are_shown_and_not_asked_for(folder: Path, tmp_path: Path) -> None:
    made(folder)
    edit(folder / "mine" / "m.yaml", "person: woman", "person: lady")
    lines: list[str] = []
    approve(found(folder), Approvals(tmp_path / "approvals"), False, lines.append)
    assert lines == ["2 finished shots to render again: prompt"]
