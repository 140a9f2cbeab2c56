"""Output folders of earlier versions stay done: see recorded/README.md."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import torch

from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.inputs.pipeline import ModelSpec, Video
from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import History
from lynx_parallel.plan import digests as identity
from lynx_parallel.plan.digests import needs_face_models, shot_digests
from lynx_parallel.plan.hashing import weight_digests
from lynx_parallel.plan.plan import Item, make_plan
from lynx_parallel.plan.weights import find_face_models, find_weights
from lynx_parallel.stages.resume_state import load_resume_state, restore
from lynx_parallel.stages.schedulers import make_scheduler

RECORDED = Path(__file__).parents[1] / "recorded"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy with new mtimes, so that contents are compared."""
    return Path(shutil.copytree(RECORDED, tmp_path / "recorded", copy_function=shutil.copyfile))


def weights(which: str) -> dict[str, str]:
    return json.loads((RECORDED / "weights.json").read_text())[which]


def planned(folder: Path, which: str) -> list[Item]:
    campaign = load_campaign(folder / f"{which}-campaign.yaml")
    return list(make_plan(campaign, weights(which), today=date(2026, 12, 1)).items)


@pytest.mark.parametrize(("which", "shots"), [("full", 5), ("lite", 1)])
def test_recorded_shots_are_done(folder: Path, which: str, shots: int) -> None:
    items = planned(folder, which)
    changes = {item.shot.name: (item.action, item.reason) for item in items if item.action != "done"}
    expected = {"found/interrupted-t01": ("render", "")} if which == "full" else {}
    assert changes == expected
    assert len(items) == shots + len(expected)


def test_the_journal_knows_the_same_shots(folder: Path) -> None:
    history = History.read(Output(folder / "full").journal)
    assert history.done == {item.digests.video for item in planned(folder, "full") if item.action == "done"}
    assert "found/interrupted-t01" in history.attempted


def test_the_resume_state_is_still_used(folder: Path) -> None:
    [item] = [item for item in planned(folder, "full") if item.action == "render"]
    state = load_resume_state(Output(folder / "full").resume_state(item.digests.latents), item.digests.latents, "cpu")
    assert state.steps_done == 169
    scheduler = make_scheduler(
        json.loads((find_weights(_model(folder)).base / "scheduler" / "scheduler_config.json").read_text()),
        item.shot.sampling,
    )  # fmt: skip
    restore(scheduler, state)
    assert state.latents is not None
    after = scheduler.step(torch.zeros_like(state.latents), scheduler.timesteps[169], state.latents)[0]
    assert after.isfinite().all()


@pytest.mark.parametrize("which", ["full", "lite"])
def test_weights_files_keep_their_names(folder: Path, which: str) -> None:
    """Their names are part of the digest. Their content may differ here: it comes from this machine's torch."""
    campaign = load_campaign(folder / f"{which}-campaign.yaml")
    face = find_face_models(campaign.pipeline.face) if needs_face_models(campaign) else None
    assert weight_digests(find_weights(campaign.pipeline.model), face).keys() == weights(which).keys()


def test_a_new_setting_at_its_default_changes_no_digest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class MoreSampling(Sampling):
        sharpness: str = "none"

    class MoreVideo(Video):
        poster: bool = False

    campaign = load_campaign(folder / "full-campaign.yaml")
    shot = campaign.shots[0]
    before = shot_digests(campaign, shot, weights("full"))

    def changed(**settings: object) -> identity.ShotDigests:
        sampling = {k: v for k, v in settings.items() if k in MoreSampling.model_fields}
        video = {k: v for k, v in settings.items() if k in MoreVideo.model_fields}
        more = MoreSampling(**shot.sampling.model_dump(), **sampling)
        pipeline = campaign.pipeline.model_copy(
            update={"video": MoreVideo(**campaign.pipeline.video.model_dump(), **video)}
        )
        return shot_digests(replace(campaign, pipeline=pipeline), replace(shot, sampling=more), weights("full"))

    assert changed() == before
    assert changed(sharpness="high").latents != before.latents
    assert changed(poster=True).latents == before.latents
    assert changed(poster=True).video != before.video


def _model(folder: Path) -> ModelSpec:
    return load_campaign(folder / "full-campaign.yaml").pipeline.model
