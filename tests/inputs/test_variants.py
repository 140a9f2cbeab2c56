"""Variants: every shot once for each, sweeps, names, precedence, and that finished shots stay done."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from lynx_parallel.errors import InputErrors
from lynx_parallel.plan.parts import plan_parts
from lynx_parallel.plan.plan import Known, make_plan
from tests.helpers.campaigns import MANIFEST, WEIGHTS, finish, load, write
from tests.helpers.planned import parts_of

Settings = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def shots(folder: Path, more: str) -> dict[str, Any]:
    return {shot.name: shot for shot in load(folder, MANIFEST + more).shots}


def mistakes(folder: Path, more: str) -> list[str]:
    with pytest.raises(InputErrors) as caught:
        load(folder, MANIFEST + more)
    return [line.partition("m.yaml:")[2].partition(" ")[2] for line in caught.value.lines]


def test_names_takes_and_settings(folder: Path) -> None:
    made = shots(
        folder,
        "variants: {plain: {}, strong: {sampling: {ip_scale: 1.5}}}\n"
        'shots: [{subject: ada, prompt: "*", takes: 2}, {subject: bob, prompt: run, sampling: {ip_scale: 0.1}}]\n',
    )
    assert list(made) == [
        "ada/walk-t01", "ada/walk-t02", "ada/walk-t01-strong", "ada/walk-t02-strong",
        "ada/run-t01", "ada/run-t02", "ada/run-t01-strong", "ada/run-t02-strong",
        "bob/run-t01", "bob/run-t01-strong",
    ]  # fmt: skip
    strong = made["ada/walk-t02-strong"]
    assert (strong.variant, strong.take, strong.seed, strong.sampling.ip_scale) == ("strong", 2, 43, 1.5)
    assert strong.id == "ada/walk/2/strong"
    assert made["bob/run-t01-strong"].sampling.ip_scale == 0.1  # the shot's own setting wins
    named = shots(
        folder, 'variants: {a: {}, b: {sampling: {ip_scale: 2}}}\nname: "{variant}/{subject}-{prompt}-{take}"\n'
    )
    assert {name.partition("/")[0] for name in named} == {"a", "b"}


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ("ip: {sampling.ip_scale: [0.6, 0.8, 1.0]}", {"ip-0.6": ("ip_scale", 0.6), "ip-1.0": ("ip_scale", 1.0)}),
        ("s: {sampling.scheduler: [euler, dpm++_sde]}", {"s-euler": ("scheduler", "euler"),
                                                         "s-dpmpp_sde": ("scheduler", "dpm++_sde")}),
        ("w: {sampling.identity_window: [[0, 0.5], [0, 1]]}", {"w-0-0.5": ("identity_window", (0, 0.5))}),
        ("g: {sampling.guidance_scale_i: [null, 2]}", {"g-none": ("guidance_scale_i", None)}),
        ("x: {sampling.ip_scale: [0, 1], sampling.ref_scale: [0, 1]}", {"x-0-1": ("ref_scale", 1),
                                                                        "x-1-0": ("ip_scale", 1)}),
    ],
)  # fmt: skip
def test_sweeps(folder: Path, sweep: str, expected: dict[str, tuple[str, Any]]) -> None:
    made = {shot.variant: shot for shot in shots(folder, f"variants: {{{sweep}}}\n").values()}
    for name, (field, value) in expected.items():
        assert getattr(made[name].sampling, field) == value


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("{}", ["variants: is empty: must be a mapping of ids, with at least one"]),
        ("{a: {pipeline: lynx-light}}", [
            "variants.a.pipeline: 'lynx-light': no shipped pipeline of that name; did you mean 'lynx-lite'?"]),
        ("{a: {pipeline: ./other.yaml}}", ["variants.a.pipeline: './other.yaml': missing file"]),
        ("{a: {pipeline: ./other.yaml}, b: {pipeline: ./other.yaml}}", [
            "variants.a.pipeline: './other.yaml': missing file"]),
        ("{a: {pipeline: 3}}", ["variants.a.pipeline: 3: must be text"]),
        ("{a: {pipeline: [x], sampling.ip_scale: [1]}}", [
            "variants.a.pipeline: a list: must be the name or the path of a pipeline"]),
        ("{a: {sampling: {ip_scal: 1}}}", ["variants.a.sampling.ip_scal: unknown key; did you mean 'ip_scale'?"]),
        ("{a: {sampling.ip_scale: 1}}", [
            "variants.a.sampling.ip_scale: 1: must be a list of values: each is a variant"]),
        ("{a: {sampling.ip_scale: [1, -2]}}", [
            "variants.a.sampling.ip_scale: -2: must be a finite number from 0"]),
        ("{a: {sampling.identity_window: [0, 1]}}", [
            "variants.a.sampling.identity_window: a list: must be a list of lists: each is a variant"]),
        ("{a: {sampling.steps: [1]}}", [
            "variants.a.sampling.steps: unknown key; did you mean 'sampling.num_inference_steps'?"]),
        ("{a-1: {sampling: {ip_scale: 2}}, a: {sampling.ip_scale: [1]}}", [
            "variants: two variants get the id 'a-1' (case is ignored)"]),
        ("{a: {sampling: {num_inference_steps: 9, scheduler: rcm}}}", ["scheduler rcm has 1 to 4 steps"]),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(folder: Path, text: str, lines: list[str]) -> None:
    found = mistakes(folder, f"variants: {text}\n")
    assert len(set(found)) == len(lines)
    for line, expected in zip(found, lines, strict=False):
        assert expected in line


def test_names_that_do_not_tell_variants_apart(folder: Path) -> None:
    [line] = mistakes(folder, 'variants: {a: {}, b: {}}\nname: "{subject}/{prompt}-{take}"\n')
    assert "get the same name 'ada/walk-1'; use {variant}, {take} or {seed}" in line


def test_adding_variants_neither_renames_nor_renders_again(folder: Path) -> None:
    campaign = load(folder, MANIFEST)
    for shot in campaign.shots:
        finish(campaign, shot)
    more = load(folder, MANIFEST + "variants: {plain: {}, strong: {sampling: {ip_scale: 1.5}}}\n")
    plan = make_plan(more, Known(WEIGHTS), today=date(2026, 1, 1))
    actions = {item.shot.name: item.action for item in plan.items}
    assert {name for name, action in actions.items() if action == "done"} == {shot.name for shot in campaign.shots}
    assert {name for name, action in actions.items() if action == "render"} == {
        f"{shot.name}-strong" for shot in campaign.shots
    }
    assert plan.orphans == []


# A pipeline of its own

FAST = """\
version: 1
model:
  base: demo:tiny
  adapters: {resampler: demo:lite, id: demo:lite}
  dtype: float32
sampling: {num_inference_steps: 4, guidance_scale: 1.0}
video: {crf: 30}
"""


def test_settings_of_a_variant_with_its_own_pipeline(folder: Path) -> None:
    """What the file sets wins over the campaign. The campaign fills in the rest. Later layers win over both."""
    (folder / "fast.yaml").write_text(FAST)
    made = shots(
        folder,
        "sampling: {num_inference_steps: 30, seed: 7, flow_shift: 9.0}\nvideo: {codec: h265, crf: 5}\n"
        "variants: {full: {}, fast: {pipeline: ./fast.yaml, sampling: {flow_shift: 2.0}}, "
        "sweep: {pipeline: ./fast.yaml, sampling.ip_scale: [0.5, 1.0]}}\n"
        "shots: [{subject: ada, prompt: run}, {subject: ada, prompt: walk, sampling: {num_inference_steps: 9}}]\n",
    )
    assert {name for name in made if "/run" in name} == {
        "ada/run-t01", "ada/run-t01-fast", "ada/run-t01-sweep-0.5", "ada/run-t01-sweep-1.0"
    }  # fmt: skip
    full, fast = made["ada/run-t01"].sampling, made["ada/run-t01-fast"].sampling
    assert (full.num_inference_steps, full.guidance_scale, full.seed, full.flow_shift) == (30, 5.0, 7, 9.0)
    assert (full.width, fast.width) == (64, 832)  # 64 is set by the campaign's own pipeline
    assert (fast.num_inference_steps, fast.guidance_scale, fast.seed, fast.flow_shift) == (4, 1.0, 7, 2.0)
    assert made["ada/run-t01-sweep-0.5"].sampling.ip_scale == 0.5
    assert made["ada/walk-t01-fast"].sampling.num_inference_steps == 9
    campaign = load(folder, (folder / "m.yaml").read_text())
    assert [sorted({shot.variant for shot in part.shots}) for part in campaign.parts] == [
        ["full"], ["fast", "sweep-0.5", "sweep-1.0"]
    ]  # fmt: skip
    videos = [part.pipeline.video for part in campaign.parts]
    assert [(video.codec, video.crf) for video in videos] == [("h265", 5), ("h265", 30)]


def test_parts_change_weights_as_rarely_as_possible(folder: Path) -> None:
    (folder / "fast.yaml").write_text(FAST)
    (folder / "slow.yaml").write_text(FAST.replace("steps: 4", "steps: 40"))
    text = MANIFEST + (
        "variants: {a: {pipeline: ./fast.yaml}, b: {}, c: {pipeline: ./slow.yaml}, d: {pipeline: ./full.yaml}}\n"
    )
    parts = load(folder, text).parts
    assert [sorted({shot.variant for shot in part.shots}) for part in parts] == [["a", "c"], ["b", "d"]]
    assert load(folder, MANIFEST).parts == ()
    first = "shots: [{subject: ada, prompt: run}, {subject: bob, prompt: run, priority: 3}]\n"
    assert [part.pipeline_path.name for part in load(folder, text + first).parts] == ["fast.yaml", "full.yaml"]


def test_a_pipeline_adds_shots_and_changes_none(folder: Path) -> None:
    (folder / "fast.yaml").write_text(FAST)
    campaign = load(folder, MANIFEST)
    for shot in campaign.shots:
        finish(campaign, shot)
    more = load(folder, MANIFEST + "variants: {full: {}, fast: {pipeline: ./fast.yaml}}\n")
    plan = plan_parts(more, parts_of(more), today=date(2026, 1, 1))
    assert [(item.shot.variant, item.action) for item in plan.items] == [
        ("full", "done"), ("fast", "render"), ("full", "done"), ("fast", "render")
    ] * 2  # fmt: skip
    assert not plan.orphans
    digests = {item.shot.variant: item.digests.settings for item in plan.items}
    assert digests["full"]["subject.landmarks"]
    assert "subject.landmarks" not in digests["fast"]  # lite sees no picture
