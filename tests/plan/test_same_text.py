"""A text that differs only in what the model does not see leaves a finished shot done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.output.folder import Output
from lynx_parallel.plan.changes import find_changes
from lynx_parallel.plan.digests import changed, shot_digests
from tests.helpers.campaigns import WEIGHTS, edit_sidecar, finish, load, write
from tests.helpers.planned import ADA, planned

MANIFEST = """\
version: 1
pipeline: ./lite.yaml
output: out
sampling: {negative_prompt: %s}
subjects: {ada: {embedding: ada.npy}}
prompts: {walk: {file: walk.txt}}
"""
SAME_FOR_THE_MODEL = {
    "double spaces": ("A woman walks. Slowly.", "A woman  walks.   Slowly."),
    "line ends": ("A woman walks.\nSlowly.", "A woman walks.\r\nSlowly."),
    "a line that is joined": ("A woman walks.\nSlowly.", "A woman walks. Slowly."),
    "a last line end": ("A woman walks.", "A woman walks.\r\n\r\n"),
    "tabs and no-break spaces": ("A woman walks.", "A\twoman\u00a0walks."),
    "composed letters": ("A woman in a caf\u00e9.", "A woman in a cafe\u0301."),
    "entities": ("Fish & chips.", "Fish &amp; chips."),
    "curly quotes": ('A "new" day, isn\'t it.', "A \u201cnew\u201d day, isn\u2019t it."),
    "wrongly decoded": ("sch\u00f6n", "sch\u00c3\u00b6n"),
}
DIFFERENT = {
    "a word": ("A woman walks.", "A woman talks."),
    "case": ("A woman walks.", "a woman walks."),
    "a space within a word": ("A wo man walks.", "A woman walks."),
    "a full stop": ("A woman walks.", "A woman walks"),
    "compatible letters": ("x\u00b2", "x2"),
    "an accent": ("caf\u00e9", "cafe"),
    "an entity beside a <": ("a < b &amp; c", "a < b and c"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def campaign(folder: Path, text: str, *, negative: str = "blurry", sets: tuple[str, ...] = ()) -> Campaign:
    (folder / "walk.txt").write_bytes(text.encode())
    return load(folder, MANIFEST % json.dumps(negative), *sets)


@pytest.mark.parametrize("kind", SAME_FOR_THE_MODEL)
@pytest.mark.parametrize("which", ["prompt", "negative prompt"])
@pytest.mark.parametrize("turned", [False, True])
def test_texts_that_the_model_sees_alike(folder: Path, kind: str, which: str, turned: bool) -> None:
    old, new = reversed(SAME_FOR_THE_MODEL[kind]) if turned else SAME_FOR_THE_MODEL[kind]
    before = campaign(folder, old) if which == "prompt" else campaign(folder, "A dog.", negative=old)
    finish(before, before.shots[0])
    known = shot_digests(before, before.shots[0], WEIGHTS)
    after = campaign(folder, new) if which == "prompt" else campaign(folder, "A dog.", negative=new)
    [item] = planned(after).items
    assert (item.action, item.reason, item.stale) == ("done", "", False)
    assert item.digests == known  # the journal knows it by these digests
    assert item.digests.resume == known.resume
    assert find_changes([item], after, WEIGHTS, ()) == []


@pytest.mark.parametrize("kind", DIFFERENT)
@pytest.mark.parametrize("which", ["prompt", "sampling.negative_prompt"])
def test_texts_that_differ_for_the_model(folder: Path, kind: str, which: str) -> None:
    old, new = DIFFERENT[kind]
    before = campaign(folder, old) if which == "prompt" else campaign(folder, "A dog.", negative=old)
    finish(before, before.shots[0])
    after = campaign(folder, new) if which == "prompt" else campaign(folder, "A dog.", negative=new)
    [item] = planned(after).items
    assert (item.action, item.reason, item.stale) == ("render", f"changed: {which}", True)
    assert item.digests.resume != shot_digests(before, before.shots[0], WEIGHTS).resume


def test_digests_are_of_the_texts_as_written(folder: Path) -> None:
    """So that what was digested so stays done, and no other version of ftfy changes a digest."""
    first, second = (campaign(folder, text) for text in ("A woman walks.", "A woman  walks."))
    one, two = shot_digests(first, first.shots[0], WEIGHTS), shot_digests(second, second.shots[0], WEIGHTS)
    assert one.latents != two.latents
    assert changed(one.settings, two.settings) == []
    assert one.resume == one.latents == two.resume


def test_beside_another_change(folder: Path) -> None:
    before = campaign(folder, "A woman walks.")
    finish(before, before.shots[0])
    [item] = planned(campaign(folder, "A woman  walks.", sets=("video.crf=30",))).items
    assert (item.action, item.reason, item.stale) == ("encode", "changed: video.crf", True)
    assert item.digests.settings["prompt"] == "A woman  walks."
    [item] = planned(campaign(folder, "A woman  walks.", sets=("sampling.seed=1",))).items
    assert (item.action, item.reason, item.stale) == ("render", "changed: sampling.seed", True)


def test_a_damaged_video_is_encoded_from_the_latents(folder: Path) -> None:
    before = campaign(folder, "A woman walks.")
    finish(before, before.shots[0])
    Output(before.output).path("ada/walk-t01", "video").unlink()
    [item] = planned(campaign(folder, "A woman  walks.")).items
    assert (item.action, item.reason) == ("encode", "video missing or damaged")


def test_a_sidecar_that_was_edited_is_not_trusted(folder: Path) -> None:
    before = campaign(folder, "A woman talks.")
    finish(before, before.shots[0])
    path = Output(before.output).path(ADA, "sidecar")
    settings = json.loads(path.read_text())["settings"]
    after = campaign(folder, "A woman walks.")
    for values in ({"prompt": "A woman walks."}, {"prompt": "A woman walks.", "x": float("nan")}):
        edit_sidecar(path, settings=settings | values)
        [item] = planned(after).items
        assert item.action == "render"
