"""A sample shows most of a campaign."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from lynx_parallel.engine.sample import turns
from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.plan.plan import Item
from lynx_parallel.plan.sample import choose_sample
from tests.helpers.campaigns import MANIFEST, load, write
from tests.helpers.planned import parts_of, planned


def items(folder: Path, more: str = "") -> list[Item]:
    write(folder)
    prompts = "prompts: {a: A., b: B., c: C., d: D.}\n" + more
    text = MANIFEST[: MANIFEST.index("prompts:")] + prompts
    return list(planned(load(folder, text)).items)


def test_it_is_spread_over_subjects_and_prompts(tmp_path: Path) -> None:
    found = choose_sample(items(tmp_path), 4)
    assert Counter(item.shot.subject.id for item in found) == {"ada": 2, "bob": 2}
    assert {item.shot.prompt.id for item in found} == {"a", "b", "c", "d"}


def test_it_is_spread_over_variants(tmp_path: Path) -> None:
    found = choose_sample(items(tmp_path, "variants: {x: {}, y: {sampling: {ip_scale: 0.5}}}\n"), 2)
    assert {item.shot.variant for item in found} == {"x", "y"}
    assert len({item.shot.subject.id for item in found}) == len({item.shot.prompt.id for item in found}) == 2


def test_it_is_in_order_and_never_more_than_there_are(tmp_path: Path) -> None:
    every = items(tmp_path)
    assert choose_sample(every, 100) == every
    assert choose_sample(every, 1) == every[:1]
    assert choose_sample([], 6) == []


def test_each_part_makes_its_sample_first_and_loads_its_weights_once_more_at_most(tmp_path: Path) -> None:
    write(tmp_path)
    text = MANIFEST + "variants: {x: {}, y: {pipeline: ./lite.yaml}}\n"
    (tmp_path / "m.yaml").write_text(text)
    campaign = load_campaign(tmp_path / "m.yaml")
    parts = parts_of(campaign)
    every = [item for part in parts for item in planned(part.campaign).items]
    sample = choose_sample(every, 2)
    made = turns(parts, every, sample)
    assert [part.campaign.pipeline_path.stem for part, _ in made] == ["full", "lite", "full"]
    names = [item.shot.name for _, mine in made for item in mine]
    assert sorted(names) == sorted(item.shot.name for item in every)
    assert {item.shot.name for item in sample} == {names[0], names[1]}
    assert turns(parts, every, []) == [(part, part.of(every)) for part in parts]
    assert turns(parts, sample, sample) == [(part, part.of(sample)) for part in parts]
