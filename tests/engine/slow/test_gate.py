"""The gate, with gangs whose videos have given scores, in virtual time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from lynx_parallel.engine.gate import Attempted, Gate, keep_candidates, next_of
from lynx_parallel.engine.summary import Summary
from lynx_parallel.inputs.cluster import ClusterSpec
from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.inputs.quality import Quality
from lynx_parallel.inputs.recognizers import Recognizer
from lynx_parallel.output.candidates import Candidate, candidate_name, choose, has_candidates
from lynx_parallel.output.checksums import add_checksum
from lynx_parallel.output.finished_latents import latents_metadata, unpublished_path
from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import Journal
from lynx_parallel.output.scores import read_scores
from lynx_parallel.output.takes import attempt_seed, read_takes
from lynx_parallel.plan.parts import Part, plan_parts
from lynx_parallel.plan.plan import Item, Plan
from lynx_parallel.plan.weights import find_weights
from tests.helpers.fake_gangs import World, supervise

QUALITY = "quality: {min_identity: 0.5, attempts: 3}\n"
NAMES = ["a/look-t01", "a/talk-t01", "a/walk-t01", "b/look-t01", "b/talk-t01", "b/walk-t01"]
Load = Callable[[str], Campaign]


@pytest.fixture
def load(campaign_of: Any, tmp_path: Path) -> Load:
    """A function that loads a campaign of six shots with a gate."""

    def load(quality: str = QUALITY) -> Campaign:
        manifest: Path = campaign_of(tmp_path / "out").path
        text = manifest.read_text()
        manifest.write_text(text[: text.index("shots:")] + quality)
        return load_campaign(str(manifest))

    return load


def second(seed: int) -> int:
    return attempt_seed(seed, 2, {42})


def third(seed: int) -> int:
    return attempt_seed(seed, 3, {42, second(seed)})


def run(load: Load, world: World, quality: str = QUALITY, **options: Any) -> tuple[Summary, Plan, list[str]]:
    lines: list[str] = []
    summary, plan, error = supervise(load(quality), world, ClusterSpec(gangs=2), say=lines.append, **options)
    assert not error
    return summary, plan, lines


def scores(**by_attempt: float | None) -> Callable[[int], float | None]:
    named = {42: by_attempt.get("first"), second(42): by_attempt.get("second"), third(42): by_attempt.get("third")}
    return lambda seed: named[seed]


def test_a_good_first_video_is_the_shot(load: Load, tmp_path: Path) -> None:
    world = World(iter(()), similarity=scores(first=0.5))
    summary, _, _ = run(load, world)
    output = Output(tmp_path / "out")
    assert sorted(summary.rendered) == NAMES
    assert (summary.candidates, summary.below) == (0, [])
    assert not output.takes.exists()
    sidecar = output.sidecar(NAMES[0])
    assert sidecar is not None
    assert sidecar["quality"] == {
        "recognizer": "dlib", "scale": "a scale", "min_identity": 0.5, "attempt": 1, "attempts": 3, "state": "scored",
        "mean": 0.5, "worst": 0.5, "with_face": 1.0, "drift": 0.0, "passed": True,
    }  # fmt: skip
    found = read_scores(output.scores(NAMES[0]), sidecar["outputs"]["video"]["sha256"])
    assert found is not None
    assert found.identity["dlib"].mean == 0.5


@pytest.mark.parametrize("first", [0.49, None], ids=["below", "no face"])
def test_a_bad_video_is_rendered_again_with_a_derived_seed(load: Load, tmp_path: Path, first: float | None) -> None:
    world = World(iter(()), similarity=scores(first=first, second=0.7))
    summary, _, lines = run(load, world)
    output = Output(tmp_path / "out")
    assert sorted(summary.rendered) == NAMES
    assert (summary.candidates, summary.below, summary.failed) == (6, [], [])
    assert {take.seed for take in read_takes(output.takes).values()} == {second(42)}
    assert [past.seed for past in read_takes(output.takes)["a", "look", "", 1].history] == [42]
    shown = "no face" if first is None else "identity 0.490"
    assert (
        f"a/look-t01: {shown}, less than 0.5 by dlib (attempt 1 of 3, seed 42); again with seed {second(42)}"
        in "\n".join(lines)
    )
    candidate = output.sidecar(candidate_name("a/look-t01", 42))
    assert candidate is not None
    assert candidate["quality"]["mean"] == first
    assert candidate["outputs"]["video"]["file"] == "s42.mp4"
    for kind in ("video", "latents"):
        assert output.path(candidate_name("a/look-t01", 42), kind).read_text() == "whole"
    sidecar = output.sidecar("a/look-t01")
    assert sidecar is not None
    assert (sidecar["shot"]["seed"], sidecar["quality"]["attempt"]) == (second(42), 2)
    assert not output.resume_states()
    again = World(iter(()), similarity=scores())
    _, plan, _ = run(load, again)
    assert {item.action for item in plan.items} == {"done"}
    assert not again.made


def test_the_best_of_bad_videos_is_kept(load: Load, tmp_path: Path) -> None:
    world = World(iter(()), similarity=scores(first=0.1, second=0.4, third=None))
    summary, _, lines = run(load, world)
    output = Output(tmp_path / "out")
    assert sorted(summary.rendered) == NAMES
    assert summary.candidates == 18
    assert sorted(summary.below) == [(name, "identity 0.400") for name in NAMES]
    assert {take.seed for take in read_takes(output.takes).values()} == {second(42)}
    assert [past.seed for past in read_takes(output.takes)["a", "look", "", 1].history] == [42, third(42)]
    sidecar = output.sidecar("a/look-t01")
    assert sidecar is not None
    assert (sidecar["name"], sidecar["outputs"]["video"]["file"]) == ("a/look-t01", "look-t01.mp4")
    assert sorted(path.name for path in (output.private / "candidates" / "a/look-t01").iterdir()) == sorted(
        f"s{seed}{suffix}" for seed in (42, third(42)) for suffix in (".mp4", ".json", ".latents.safetensors")
    )
    found = read_scores(output.scores("a/look-t01"))
    assert found is not None
    assert found.identity["dlib"].mean == 0.4
    assert any(f"kept seed {second(42)}, identity 0.400" in line for line in lines)
    _, plan, _ = run(load, World(iter(())))
    assert {item.action for item in plan.items} == {"done"}
    assert max(world.made.values()) == 1


def test_old_files_stay_until_a_video_is_kept(load: Load, tmp_path: Path) -> None:
    run(load, World(iter(()), similarity=scores(first=1.0)))
    output = Output(tmp_path / "out")
    manifest = load(QUALITY + "sampling: {num_inference_steps: 7}\n")
    old = output.sidecar("a/look-t01")
    assert old is not None
    world = World(iter(()), similarity=lambda seed: 0.1)
    supervise(manifest, world, ClusterSpec(), stop_after=200)
    assert output.sidecar("a/look-t01") == old
    supervise(manifest, world, ClusterSpec())
    new = output.sidecar("a/look-t01")
    assert new is not None
    assert new["settings"]["sampling.num_inference_steps"] == 7
    assert (output.private / "superseded" / old["digests"]["video"][:8] / "a/look-t01.mp4").exists()


@pytest.mark.parametrize("stop", range(30, 1500, 130))
def test_a_stopped_run_renders_nothing_twice(load: Load, tmp_path: Path, stop: float) -> None:
    world = World(iter(()), similarity=scores(first=0.1, second=0.4, third=0.3))
    run(load, world, stop_after=stop)
    _, plan, _ = run(load, world)
    assert set(world.made.values()) == {1}
    assert len(world.made) == 18
    assert {take.seed for take in read_takes(Output(tmp_path / "out").takes).values()} == {second(42)}
    _, plan, _ = run(load, world)
    assert {item.action for item in plan.items} == {"done"}


STEPS = ["choose", "changing", "move", "write_sidecar"]


@pytest.mark.parametrize("number", range(1, 6))
@pytest.mark.parametrize("step", STEPS)
def test_a_driver_that_dies_while_it_keeps_a_candidate(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    """Dies at the n-th call of one of the steps. The next run completes it and renders nothing again."""
    from lynx_parallel.engine import gate
    from lynx_parallel.output import candidates

    class Died(BaseException):
        pass

    calls = 0
    module: Any = gate if step in ("choose", "changing") else candidates
    real = getattr(module, step)

    def dying(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= number:  # a dead process makes no further step
            raise Died
        return real(*arguments)

    world = World(iter(()), similarity=scores(first=0.1, second=0.4, third=0.3))
    with monkeypatch.context() as patch:
        patch.setattr(module, step, dying)
        with contextlib.suppress(Died):
            run(load, world)
    assert calls >= number
    complete(load(QUALITY), tmp_path)
    run(load, world)
    assert set(world.made.values()) == {1}
    assert len(world.made) == 18
    output = Output(tmp_path / "out")
    assert {take.seed for take in read_takes(output.takes).values()} == {second(42)}
    assert sorted(name for name, _ in output.sidecars()) == NAMES
    for name in NAMES:
        assert output.path(name, "video").read_text() == output.path(name, "latents").read_text() == "whole"
    _, plan, _ = run(load, world)
    assert {item.action for item in plan.items} == {"done"}


def complete(campaign: Campaign, folder: Path) -> None:
    """Does what a driver does once it has the lock."""
    output = Output(folder / "out")
    part = Part(campaign, find_weights(campaign.pipeline.model))
    todo = _planned(campaign).of("render", "encode")
    keep_candidates([part], todo, output, Journal(output.journal))


def test_a_failed_attempt_is_tried_again_with_its_seed(load: Load, tmp_path: Path) -> None:
    outcomes = ["done", "done", "died", "done", "raised", "hung", "done", "died"]
    world = World(iter(outcomes), similarity=scores(first=0.1, second=0.9))
    summary, _, _ = run(load, world)
    assert sorted(summary.rendered) == NAMES
    assert set(world.made.values()) == {1}


def test_a_lower_threshold_keeps_a_candidate_without_rendering(load: Load, tmp_path: Path) -> None:
    world = World(iter(()), similarity=scores(first=0.1, second=0.4, third=0.3))
    run(load, world, stop_after=600)
    before = dict(world.made)
    tried = {path.parent.name for path in (tmp_path / "out" / ".lynx" / "candidates").rglob("s*.json")}
    assert tried
    summary, _, _ = run(load, world, "quality: {min_identity: 0.05, attempts: 3}\n")
    assert not summary.below
    assert sum(world.made.values()) < 18
    assert all(world.made[digest] == count for digest, count in before.items())


def test_no_gate_without_the_key(load: Load, tmp_path: Path) -> None:
    world = World(iter(()), similarity=scores(first=0.0))
    summary, _, _ = run(load, world, "")
    assert sorted(summary.rendered) == NAMES
    sidecar = Output(tmp_path / "out").sidecar(NAMES[0])
    assert sidecar is not None
    assert "quality" not in sidecar


def candidate(seed: int, similarity: float | None) -> Candidate:
    return Candidate("x", seed, similarity, {"quality": {}})


@pytest.mark.parametrize(
    ("similarities", "expected"),
    [
        ([], 1),
        ([0.1], 2),
        ([0.1, 0.2, 0.3], "s3"),
        ([0.3, 0.2, 0.3], "s1"),
        ([None, None, None], "s1"),
        ([None, -0.2, None], "s2"),
        ([0.6], "s1"),
        ([0.1, 0.7], "s2"),
    ],
)
def test_what_follows(similarities: list[float | None], expected: object) -> None:
    quality = Quality(Recognizer("dlib"), 0.5, 3)
    items: list[Any] = [1, 2, 3]
    attempts = [
        Attempted(item, candidate(item, similarities[item - 1]) if item <= len(similarities) else None)
        for item in items
    ]
    following = next_of(attempts, quality)
    assert (f"s{following.seed}" if isinstance(following, Candidate) else following) == expected


def test_a_chosen_candidate_is_written_down(tmp_path: Path) -> None:
    output = Output(tmp_path)
    one = replace(candidate(7, 0.3), sidecar={"quality": {"mean": 0.3}, "digests": {}})
    output.path(one.own, "sidecar").parent.mkdir(parents=True)
    assert choose(output, one).sidecar["quality"] == {"mean": 0.3, "kept": True}
    assert json.loads(output.path(one.own, "sidecar").read_text())["quality"]["kept"] is True


def test_latents_of_a_killed_attempt_are_only_encoded(load: Load, tmp_path: Path) -> None:
    campaign = load(QUALITY)
    supervise(campaign, World(iter(()), similarity=scores(first=0.1)), ClusterSpec(), stop_after=170)
    output = Output(tmp_path / "out")
    item = next(item for item in _planned(campaign).items if has_candidates(output, item.shot.name))
    gate = Gate(campaign, output, item, {})
    following = gate.next()
    assert isinstance(following, Item)
    assert (following.action, following.shot.seed) == ("render", second(42))
    latents = add_checksum(save({"latents": np.zeros(1)}), latents_metadata(following.digests.latents, None))
    path = unpublished_path(output, item.shot.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(latents)
    again = gate.next()
    assert isinstance(again, Item)
    assert (again.action, again.latents, again.shot.seed) == ("encode", path, second(42))


def _planned(campaign: Campaign) -> Plan:
    part = Part(campaign, find_weights(campaign.pipeline.model))
    return plan_parts(campaign, [part], today=date.today())
