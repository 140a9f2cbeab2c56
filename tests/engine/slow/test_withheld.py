"""Shots that the safety checker withholds, in virtual time, with and without a gate and auditions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lynx_parallel.engine.summary import Summary
from lynx_parallel.inputs.cluster import ClusterSpec
from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.inputs.site import Safety, Site
from lynx_parallel.output.folder import Output
from lynx_parallel.output.shot_states import shot_states
from lynx_parallel.output.takes import attempt_seed
from lynx_parallel.plan.plan import Plan
from tests.helpers.fake_gangs import World, supervise

Load = Callable[..., Campaign]
SECOND = attempt_seed(42, 2, {42})
THIRD = attempt_seed(42, 3, {42, SECOND})


@pytest.fixture
def load(campaign_of: Any, tmp_path: Path) -> Load:
    """A function that loads a campaign of two shots, on a site with a safety checker."""

    def load(more: str = "", checker: str = "checker") -> Campaign:
        manifest: Path = campaign_of(tmp_path / "out").path
        text = manifest.read_text()
        shots = "" if "shots:" in more else 'shots: [{subject: "*", prompt: walk}]\n'
        manifest.write_text(text[: text.index("shots:")] + shots + more)
        safety = Safety(tmp_path, 0.85, ("nsfw",))
        safety.__dict__["digest"] = checker  # there are no files to hash
        return replace(load_campaign(str(manifest)), site=Site(tmp_path / "site.yaml", safety=safety))

    return load


def run(campaign: Campaign, world: World) -> tuple[Summary, Plan]:
    summary, plan, error = supervise(campaign, world, ClusterSpec(gangs=2))
    assert not error
    return summary, plan


def made(folder: Path) -> list[str]:
    """Returns the files that show something of a shot."""
    suffixes = (".mp4", ".safetensors", ".part", ".jpg")
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.endswith(suffixes)]


def test_nothing_of_a_withheld_shot_is_kept(load: Load, tmp_path: Path) -> None:
    world = World(iter(()), unsafe=frozenset({42}))
    summary, _ = run(load(), world)
    assert sorted(name for name, _ in summary.withheld) == ["a/walk-t01", "b/walk-t01"]
    assert (summary.rendered, summary.failed, summary.exit_code) == ([], [], 1)
    output = Output(tmp_path / "out")
    assert made(output.folder / "a") == made(output.private / "latents") == made(output.private / "partial") == []
    assert {state.state for state in shot_states(output)} == {"withheld"}
    assert world.starts == 2  # the gangs go on


def test_it_is_not_rendered_again_by_the_same_checker(load: Load) -> None:
    world = World(iter(()), unsafe=frozenset({42}))
    run(load(), world)
    before = dict(world.attempts)
    _, plan = run(load(), world)
    assert {item.action for item in plan.items} == {"withheld"}
    assert dict(world.attempts) == before
    world.unsafe = frozenset()
    summary, _ = run(load(checker="another"), world)
    assert sorted(summary.rendered) == ["a/walk-t01", "b/walk-t01"]


QUALITY = "quality: {min_identity: 0.5, attempts: 3}\n"


def test_a_gate_takes_the_next_seed(load: Load) -> None:
    world = World(iter(()), unsafe=frozenset({42, SECOND}), similarity=lambda seed: 0.9)
    summary, _ = run(load(QUALITY), world)
    assert sorted(summary.rendered) == ["a/walk-t01", "b/walk-t01"]
    _, plan = run(load(QUALITY), world)
    assert {(item.action, item.shot.seed) for item in plan.items} == {("done", THIRD)}


def test_a_gate_whose_attempts_are_all_withheld(load: Load) -> None:
    world = World(iter(()), unsafe=frozenset({42, SECOND, THIRD}))
    summary, _ = run(load(QUALITY), world)
    assert len(summary.withheld) == 2
    before = dict(world.attempts)
    summary, plan = run(load(QUALITY), world)
    assert {item.action for item in plan.items} == {"withheld"}
    assert dict(world.attempts) == before


@pytest.mark.parametrize("stop", range(100, 500, 60))
def test_a_stopped_gate_takes_the_next_seed_later(load: Load, stop: float) -> None:
    world = World(iter(()), unsafe=frozenset({42, SECOND}), similarity=lambda seed: 0.9)
    _, _, error = supervise(load(QUALITY), world, ClusterSpec(), stop_after=stop)
    assert not error
    run(load(QUALITY), world)
    _, plan = run(load(QUALITY), world)
    assert {(item.action, item.shot.seed) for item in plan.items} == {("done", THIRD)}
    assert max(world.made.values()) == 1


def test_a_candidate_is_kept_if_the_others_are_withheld(load: Load) -> None:
    world = World(iter(()), unsafe=frozenset({SECOND, THIRD}), similarity=lambda seed: 0.1)
    summary, _ = run(load(QUALITY), world)
    assert sorted(summary.rendered) == ["a/walk-t01", "b/walk-t01"]
    assert len(summary.below) == 2
    _, plan = run(load(QUALITY), world)
    assert {(item.action, item.shot.seed) for item in plan.items} == {("done", 42)}


def test_a_withheld_take_leaves_its_audition(load: Load) -> None:
    audition = (
        "shots: [{subject: a, prompt: walk, takes: 3, audition: {step: 12}}]\nsampling: {num_inference_steps: 50}\n"
    )
    world = World(iter(()), unsafe=frozenset({44}), similarity=lambda seed: seed / 100)
    summary, _ = run(load(audition), world)
    assert [name for name, _ in summary.withheld] == ["a/walk-t03"]
    assert (summary.rendered, summary.not_chosen) == (["a/walk-t02"], ["a/walk-t01"])
    _, plan = run(load(audition), world)
    assert [item.action for item in plan.items] == ["not chosen", "done", "withheld"]
