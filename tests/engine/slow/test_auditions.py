"""Auditions, with gangs whose previews have given scores, in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lynx_parallel.engine.summary import Summary
from lynx_parallel.errors import RenderError
from lynx_parallel.inputs.cluster import ClusterSpec
from lynx_parallel.inputs.early_scores import correlations
from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.output.auditions import read_audition
from lynx_parallel.output.folder import Output
from lynx_parallel.output.takes import Take, changing
from lynx_parallel.plan.plan import Plan
from lynx_parallel.plan.work import forwards
from tests.helpers.fake_gangs import World, supervise

AUDITION = "{step: 12, keep: 1}"
Load = Callable[..., Campaign]


@pytest.fixture
def load(campaign_of: Any, tmp_path: Path) -> Load:
    """A function that loads a campaign of four takes of each of two shots, of 50 steps."""

    def load(audition: str = AUDITION, more: str = "") -> Campaign:
        manifest: Path = campaign_of(tmp_path / "out").path
        text = manifest.read_text()
        shots = f'shots:\n- {{subject: "*", prompt: walk, takes: 4, audition: {audition}}}\n'
        manifest.write_text(text[: text.index("shots:")] + shots + "sampling: {num_inference_steps: 50}\n" + more)
        return load_campaign(str(manifest))

    return load


def run(campaign: Campaign, world: World, **options: Any) -> tuple[Summary, Plan, list[str]]:
    lines: list[str] = []
    summary, plan, error = supervise(campaign, world, ClusterSpec(gangs=2), say=lines.append, **options)
    assert not error
    return summary, plan, lines


def by_seed(seed: int) -> float:
    return {42: 0.2, 43: 0.3, 44: 0.7, 45: 0.1}[seed]


def test_only_the_best_take_is_finished(load: Load, tmp_path: Path) -> None:
    world = World(iter(()), similarity=by_seed)
    summary, plan, lines = run(load(), world)
    assert {item.action for item in plan.items} == {"audition"}
    assert sorted(summary.rendered) == ["a/walk-t03", "b/walk-t03"]
    assert len(summary.not_chosen) == 6
    assert (summary.auditioned, summary.failed, summary.exit_code) == (8, [], 0)
    assert world.steps == {(f"{subject}/walk-t0{take}", 41 + take): 50 if take == 3 else 12
                           for subject in "ab" for take in (1, 2, 3, 4)}  # fmt: skip
    # Best of 4 at step 12 of 50: 12 x 4 + 38 = 86 steps instead of 50.
    sampling = plan.items[0].shot.sampling
    assert sum(world.steps.values()) / 2 / 50 == 1.72
    assert sum(item.share for item in plan.items[:4]) == pytest.approx(1.72)
    assert forwards(sampling, has_reference=True) == 150
    assert any("a/walk-t01: not chosen: identity 0.200 at step 12, the chosen ones have 0.700 or more" in line
               for line in lines)  # fmt: skip
    output = Output(tmp_path / "out")
    record = read_audition(output.audition("a/walk-t03"))
    assert record is not None
    assert (record.seed, record.step, record.total, record.similarity) == (44, 12, 50, 0.7)
    assert output.preview("a/walk-t03").read_text() == "whole"
    assert sorted(name for name, _ in output.sidecars()) == ["a/walk-t03", "b/walk-t03"]


def test_the_next_run_has_nothing_to_do(load: Load) -> None:
    world = World(iter(()), similarity=by_seed)
    run(load(), world)
    before = dict(world.steps)
    summary, plan, _ = run(load(), world)
    assert [item.action for item in plan.items[:4]] == ["not chosen", "not chosen", "done", "not chosen"]
    assert str(plan) == "8 shots: 0 to render, 0 to encode, 2 done, 0 blocked, 6 not chosen"
    assert (dict(world.steps), summary.rendered) == (before, [])


def test_one_more_take_is_finished_later(load: Load) -> None:
    world = World(iter(()), similarity=by_seed)
    run(load(), world)
    summary, _, _ = run(load("{step: 12, keep: 2}"), world)
    assert sorted(summary.rendered) == ["a/walk-t02", "b/walk-t02"]
    assert world.steps["a/walk-t02", 43] == 50


def test_a_later_step_needs_new_previews(load: Load) -> None:
    world = World(iter(()), similarity=by_seed)
    run(load(), world)
    _, plan, _ = run(load("{step: 20, keep: 1}"), world)
    assert {item.action for item in plan.items} == {"done", "not chosen"}  # a finished take already takes the place
    run(load("{step: 20, keep: 2}"), world)
    assert world.steps["a/walk-t01", 42] == 20


@pytest.mark.parametrize("stop", range(40, 900, 60))
def test_a_stopped_run_makes_no_step_twice(load: Load, stop: float) -> None:
    world = World(iter(()), similarity=by_seed)
    run(load(), world, stop_after=stop)
    run(load(), world)
    _, plan, _ = run(load(), world)
    assert [item.action for item in plan.items[:4]] == ["not chosen", "not chosen", "done", "not chosen"]
    assert sum(world.steps.values()) == 2 * 86


@pytest.mark.parametrize("outcome", ["died", "raised", "hung", "memory"])
def test_failed_attempts_are_tried_again(load: Load, outcome: str) -> None:
    world = World(iter(["done", "done", outcome, "done", outcome]), similarity=by_seed)
    summary, _, _ = run(load(), world)
    assert sorted(summary.rendered) == ["a/walk-t03", "b/walk-t03"]


def test_a_take_that_fails_leaves_the_audition(load: Load) -> None:
    def similarity(seed: int) -> float:
        if seed == 44:
            raise RenderError("the recognizer failed", "raised")
        return by_seed(seed)

    world = World(iter(()), similarity=similarity)
    summary, _, error = supervise(load(), world, ClusterSpec())
    assert not error
    assert sorted(name for name, _ in summary.failed) == ["a/walk-t03", "b/walk-t03"]
    assert sorted(summary.rendered) == ["a/walk-t02", "b/walk-t02"]
    assert summary.exit_code == 1


def test_a_person_chooses(load: Load, tmp_path: Path) -> None:
    audition = "{step: 12, keep: 1, choose: person}"
    world = World(iter(()), similarity=by_seed)
    summary, _, _ = run(load(audition), world)
    assert (summary.rendered, len(summary.waiting), summary.exit_code) == ([], 8, 1)
    _, plan, _ = run(load(audition), world)
    assert {item.action for item in plan.items} == {"auditioned"}
    assert plan.items[0].reason == "identity 0.200 at step 12, waits for a choice"
    assert sum(world.steps.values()) == 2 * 4 * 12
    with changing(Output(tmp_path / "out").takes) as takes:
        take = Take("a", "walk", 2, 43, state="accepted", time="2026-11-27T00:00:00")
        takes[take.key] = take
    summary, plan, _ = run(load(audition), world)
    assert summary.rendered == ["a/walk-t02"]
    assert sorted(item.action for item in plan.items[:4]) == ["not chosen"] * 3 + ["render"]
    assert world.steps["a/walk-t02", 43] == 50


def test_a_winner_passes_the_gate_or_gets_another_seed(load: Load) -> None:
    world = World(iter(()), similarity=lambda seed: by_seed(seed) if seed < 100 else 0.95)
    summary, _, _ = run(load(more="quality: {min_identity: 0.9, attempts: 2}\n"), world)
    assert sorted(summary.rendered) == ["a/walk-t03", "b/walk-t03"]
    assert (summary.candidates, summary.below) == (2, [])
    steps = {key: count for key, count in world.steps.items() if key[0] == "a/walk-t03"}
    assert sorted(steps.values()) == [50, 50]
    _, plan, _ = run(load(more="quality: {min_identity: 0.9, attempts: 2}\n"), world)
    assert [item.action for item in plan.items[:4]] == ["not chosen", "not chosen", "done", "not chosen"]


def test_early_and_final_scores_are_compared_over_all_runs(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores are stand-ins, because the demo's frames are noise: previews score as ``by_seed``, videos as given."""
    monkeypatch.setenv("LYNX_CACHE", str(tmp_path / "cache"))
    finals = iter([0.45, 0.44, 0.35, 0.36, 0.26, 0.25])
    early: list[int] = []

    def similarity(seed: int) -> float:
        early.append(seed)
        return by_seed(seed) if early.count(seed) <= 2 else next(finals)

    assert correlations() == []
    for keep in (1, 2, 3):
        run(load(f"{{step: 12, keep: {keep}}}"), World(iter(()), similarity=similarity))
    [one] = correlations()
    assert (one.recognizer, one.base, one.step, one.total, one.pairs) == ("dlib", "demo:tiny", 12, 50, 6)
    assert one.value is not None
    assert one.value > 0.9
    assert str(one).startswith("correlation of early and final scores at step 12 of 50 by dlib: 0.9")


def test_another_recognizer_needs_new_previews(load: Load) -> None:
    audition, quality = "{step: 12, keep: 1, choose: person}", "quality: {attempts: 1, min_identity: -1}\n"
    world = World(iter(()), similarity=by_seed)
    run(load(audition, quality), world)
    _, plan, _ = run(load(audition, quality), world)
    assert {item.action for item in plan.items} == {"auditioned"}
    _, plan, _ = run(load(audition, quality.replace("{", "{recognizer: 'sface:x', ")), world)
    assert {item.action for item in plan.items} == {"audition"}
