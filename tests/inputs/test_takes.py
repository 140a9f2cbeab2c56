"""Takes that stay put: seeds by hand, rerolled takes, files of takes, reviews."""

from __future__ import annotations

from pathlib import Path

import pytest

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.inputs.review import Reviewed, apply_review, reroll_shots
from lynx_parallel.inputs.takes_file import takes_as_yaml
from lynx_parallel.output.folder import Output
from lynx_parallel.output.takes import read_takes
from tests.helpers.campaigns import tree
from tests.helpers.manifests import ADA, HEAD, PROMPTS, Complain, Load

TWO = HEAD + ADA + PROMPTS + "shots:\n- {subject: ada, prompt: walk, takes: 2}\n"


def seeds(campaign: Campaign) -> dict[str, int]:
    return {shot.name: shot.seed for shot in campaign.shots}


def with_shots(text: str) -> str:
    return HEAD + ADA + PROMPTS + f"shots:\n{text}"


def reroll(campaign: Campaign, name: str) -> int:
    """Rerolls a take. Returns its new seed."""
    [take] = reroll_shots(Output(campaign.output), campaign, [s for s in campaign.shots if s.name == name])
    return take.seed


def test_seeds_by_take(load: Load) -> None:
    campaign = load(with_shots("- {subject: ada, prompt: walk, takes: {1: 42, 3: 99}}\n"))
    assert seeds(campaign) == {"ada/walk-t01": 42, "ada/walk-t03": 99}
    counted = load(
        with_shots("- {subject: ada, prompt: walk, takes: {2: 5}}\n- {subject: ada, prompt: walk, takes: 2}\n")
    )
    assert seeds(counted) == {"ada/walk-t02": 5, "ada/walk-t03": 42, "ada/walk-t04": 43}


@pytest.mark.parametrize(
    ("shots", "line"),
    [
        (
            "- {subject: ada, prompt: walk, takes: {0: 42}}\n",
            "takes: a mapping: must be a whole number from 1, or seeds",
        ),
        (
            "- {subject: ada, prompt: walk, takes: {1: -2}}\n",
            "takes: a mapping: must be a whole number from 1, or seeds",
        ),
        ("- {subject: ada, prompt: walk, takes: {}}\n", "takes: a mapping: must be a whole number from 1, or seeds"),
        ("- {subject: ada, prompt: walk, takes: {1: 4}, seeds: [4]}\n", "gives seeds by take beside seeds"),
        ("- {subject: ada, prompt: walk, takes: {1: 4, 2: 4}}\n", "ada/walk with seed 4 is given twice"),
        (
            "- {subject: ada, prompt: walk}\n- {subject: ada, prompt: walk, takes: {1: 4}}\n",
            "take 1 of ada/walk is given twice",
        ),
    ],
)
def test_wrong_seeds_by_take(complain: Complain, shots: str, line: str) -> None:
    [found] = complain(with_shots(shots))
    assert line in found


def test_a_reroll_changes_one_take_and_writes_nothing_beside_the_manifest(load: Load, folder: Path) -> None:
    campaign = load(TWO)
    before = tree(folder)
    seed = reroll(campaign, "ada/walk-t02")
    assert {path for path in tree(folder) if path not in before} == {"out/.lynx/takes.json", "out/.lynx/takes.lock"}
    again = load(TWO)
    assert seeds(again) == {"ada/walk-t01": 42, "ada/walk-t02": seed}
    assert seed not in (42, 43)
    second = next(shot for shot in again.shots if shot.take == 2)
    assert second.bound
    assert [past.seed for past in second.history] == [43]
    assert reroll(again, "ada/walk-t02") not in (42, 43, seed)
    assert [past.seed for past in load(TWO).shots[1].history] == [43, seed]


def test_an_accepted_take_keeps_its_seed_when_the_campaigns_seed_changes(load: Load, folder: Path) -> None:
    review(folder, load(TWO), {"ada/walk-t02": "pick"})
    changed = load(TWO + "sampling: {seed: 1000}\n")
    assert seeds(changed) == {"ada/walk-t01": 1000, "ada/walk-t02": 43}
    assert [shot.state for shot in changed.shots] == ["", "accepted"]


def test_a_counted_take_never_gets_the_seed_of_another_take(load: Load, folder: Path) -> None:
    """With the campaign's seed 43, take 1 would be a copy of the accepted take 2."""
    review(folder, load(TWO), {"ada/walk-t02": "pick"})
    changed = load(TWO + "sampling: {seed: 43}\n")
    assert changed.shots[1].seed == 43
    assert changed.shots[0].seed not in (43, 44)
    assert seeds(changed) == seeds(load(TWO + "sampling: {seed: 43}\n"))


def test_a_seed_by_hand_that_is_edited_after_a_reroll_wins(load: Load) -> None:
    by_hand = with_shots("- {subject: ada, prompt: walk, seeds: [1, 2]}\n")
    seed = reroll(load(by_hand), "ada/walk-t02")
    assert seeds(load(by_hand))["ada/walk-t02"] == seed
    assert seeds(load(by_hand.replace("2]", "7]")))["ada/walk-t02"] == 7
    assert seeds(load(by_hand))["ada/walk-t02"] == seed


def test_a_seed_by_hand_that_another_take_has_by_now_is_a_mistake(load: Load, complain: Complain) -> None:
    by_hand = with_shots("- {subject: ada, prompt: walk, seeds: [1, 2]}\n")
    seed = reroll(load(by_hand), "ada/walk-t02")
    [line] = complain(by_hand.replace("[1,", f"[{seed},"))
    assert f"take 1 of ada/walk: another take has the seed {seed} by now" in line


def test_exported_takes_make_the_same_shots_elsewhere(load: Load, folder: Path) -> None:
    campaign = load(TWO)
    reroll(campaign, "ada/walk-t02")
    expected = seeds(load(TWO))
    (folder / "spring.takes.yaml").write_text(takes_as_yaml(read_takes(Output(campaign.output).takes)))
    elsewhere = TWO.replace("output: out", "output: other") + "takes: spring.takes.yaml\n"
    found = load(elsewhere)
    assert seeds(found) == expected
    assert [past.seed for past in found.shots[1].history] == [43]
    assert Path(folder / "spring.takes.yaml").absolute() in found.sources
    reroll(found, "ada/walk-t02")
    assert seeds(load(elsewhere)) != expected, "the later change wins"


@pytest.mark.parametrize(
    ("takes", "line"),
    [
        (None, "'t.yaml': missing file"),
        ("version: 1\ntakes:\n- {subject: ada, prompt: walk, take: 2}\n", "t.yaml:3: takes[0].seed: missing"),
        (
            "version: 1\ntakes:\n- {subject: ada, prompt: walk, take: 2, seed: 4, state: good}\n",
            "must be 'accepted' or",
        ),
        ("takes: []\n", "version: missing"),
    ],
)
def test_a_wrong_file_of_takes_is_named(folder: Path, complain: Complain, takes: str | None, line: str) -> None:
    if takes is not None:
        (folder / "t.yaml").write_text(takes)
    assert any(line in one for one in complain(TWO + "takes: t.yaml\n"))


def test_a_damaged_file_in_the_output_folder_is_refused(folder: Path, complain: Complain) -> None:
    (folder / "out" / ".lynx").mkdir(parents=True)
    (folder / "out" / ".lynx" / "takes.json").write_text("{")
    [line] = complain(TWO)
    assert "takes.json: not a file of takes" in line


def review(folder: Path, campaign: Campaign, verdicts: dict[str, str], **seeds: int) -> Reviewed:
    rows = [
        f"{shot.name},{shot.subject.id},{shot.prompt.id},{shot.variant},{shot.take},{shot.seed},{verdicts[shot.name]}"
        for shot in campaign.shots
        if shot.name in verdicts
    ]
    path = folder / "review.csv"
    path.write_text("shot,subject,prompt,variant,take,seed,verdict\n" + "\n".join(rows) + "\n")
    return apply_review(Output(campaign.output), campaign, path)


def test_a_review_is_applied_once(load: Load, folder: Path) -> None:
    campaign = load(TWO)
    assert review(folder, campaign, {"ada/walk-t01": "pick", "ada/walk-t02": "reject"}) == Reviewed(1, 1, 0)
    changed = load(TWO)
    assert [shot.state for shot in changed.shots] == ["accepted", ""]
    assert changed.shots[1].seed not in (42, 43)
    again = apply_review(Output(campaign.output), changed, folder / "review.csv")
    assert again == Reviewed(0, 0, 1)
    assert seeds(load(TWO)) == seeds(changed)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("shot,seed\n", "has no column verdict"),
        ("shot,seed,verdict\nada/walk-t01,42,maybe\n", "review.csv:2: column verdict: 'maybe': must be 'pick'"),
        ("shot,seed,verdict\nada/walk-t09,42,pick\n", "column shot: 'ada/walk-t09': no such shot; did you mean"),
        ("shot,seed,verdict\nada/walk-t01,4.2,pick\n", "column seed: '4.2': must be a whole number"),
        ("shot,seed,verdict\nada/walk-t01,42,pick\nada/walk-t01,42,reject\n", "ada/walk-t01 is reviewed twice"),
    ],
)
def test_a_wrong_review_changes_nothing(load: Load, folder: Path, text: str, line: str) -> None:
    campaign = load(TWO)
    (folder / "review.csv").write_text(text)
    with pytest.raises(InputErrors) as raised:
        apply_review(Output(campaign.output), campaign, folder / "review.csv")
    assert any(line in one for one in raised.value.lines)
    assert not Output(campaign.output).takes.exists()


def test_takes_of_each_variant_are_their_own(load: Load) -> None:
    text = TWO + "variants: {plain: {}, soft: {sampling: {ip_scale: 0.5}}}\n"
    campaign = load(text)
    seed = reroll(campaign, "ada/walk-t02-soft")
    assert seeds(load(text)) == {**seeds(campaign), "ada/walk-t02-soft": seed}


def test_only_and_set_leave_takes_alone(load: Load) -> None:
    seed = reroll(load(TWO), "ada/walk-t02")
    found = load_campaign("m.yaml", ["sampling.seed=500"])
    assert seeds(found) == {"ada/walk-t01": 500, "ada/walk-t02": seed}
