"""Which finished shots are chosen, and how their files are called."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.finished import Selection, names_of, select_finished
from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.inputs.names import DELIVERED_NAME
from lynx_parallel.inputs.review import apply_review, reroll_shots
from lynx_parallel.output.folder import Output
from tests.helpers.campaigns import MANIFEST, edit_sidecar, load
from tests.helpers.finished import finished_campaign
from tests.helpers.planned import TODAY

ALL = ["ada/walk-t01", "ada/run-t01", "bob/walk-t01", "bob/run-t01"]


@pytest.fixture
def made(tmp_path: Path) -> tuple[Campaign, Output]:
    return finished_campaign(tmp_path)


def chosen(output: Output, campaign: Campaign | None = None, today: date = TODAY, **options: object) -> Selection:
    return select_finished(output, campaign, whole=campaign is not None, today=today, **options)  # type: ignore[arg-type]


def names(selection: Selection) -> list[str]:
    return [shot.name for shot in selection.shots]


def test_all_finished_shots_in_the_order_of_the_manifest(made: tuple[Campaign, Output]) -> None:
    campaign, output = made
    assert names(chosen(output, campaign)) == ALL
    assert names(chosen(output)) == sorted(ALL)
    fields = chosen(output).shots[0].fields
    assert fields == {
        "name": "ada/run-t01", "subject": "ada", "prompt": "run", "variant": "", "take": 1, "seed": 42,
        "width": 64, "height": 48, "num_frames": 9, "fps": "16",
    }  # fmt: skip


def test_a_shot_is_finished_if_its_video_has_its_size(made: tuple[Campaign, Output]) -> None:
    campaign, output = made
    output.path("ada/walk-t01", "video").write_bytes(b"cut")
    output.path("ada/run-t01", "video").unlink()
    output.path("bob/walk-t01", "sidecar").unlink()
    selection = chosen(output, campaign)
    assert names(selection) == ["bob/run-t01"]
    assert (selection.total, selection.unfinished) == (4, 3)


def test_only_some(made: tuple[Campaign, Output]) -> None:
    campaign, output = made
    for known in (campaign, None):
        assert set(names(chosen(output, known, only=["ada/*"]))) == {"ada/walk-t01", "ada/run-t01"}
        assert names(chosen(output, known, only=["bob/walk"])) == ["bob/walk-t01"]
        with pytest.raises(InputErrors, match=r"--only 'adda/\*': fits no shot"):
            chosen(output, known, only=["adda/*"])


def test_picked_takes_and_takes_with_another_seed(made: tuple[Campaign, Output], tmp_path: Path) -> None:
    campaign, output = made
    (tmp_path / "review.csv").write_text("shot,seed,verdict\nada/walk-t01,42,pick\nbob/run-t01,42,pick\n")
    apply_review(output, campaign, tmp_path / "review.csv")
    reroll_shots(output, campaign, [shot for shot in campaign.shots if shot.name == "ada/run-t01"])
    campaign = load(tmp_path)
    for known in (campaign, None):  # without the campaign, the file of takes says it
        selection = chosen(output, known, picked=True)
        assert set(names(selection)) == {"ada/walk-t01", "bob/run-t01"}
        assert (selection.unpicked, selection.unfinished) == (1, 0)
        assert selection.left_out.keys() == {"ada/run-t01"}
        assert selection.left_out["ada/run-t01"].startswith("made with seed 42; the next render takes ")
        assert set(names(chosen(output, known))) == {*ALL} - {"ada/run-t01"}


def test_an_accepted_take_that_was_rerolled_is_not_picked(made: tuple[Campaign, Output], tmp_path: Path) -> None:
    campaign, output = made
    (tmp_path / "review.csv").write_text("shot,seed,verdict\nada/walk-t01,42,pick\n")
    apply_review(output, campaign, tmp_path / "review.csv")
    reroll_shots(output, load(tmp_path), [campaign.shots[0]])
    assert not chosen(output, picked=True).shots


def test_nobody_is_shown_whose_consent_has_expired(made: tuple[Campaign, Output], tmp_path: Path) -> None:
    campaign, output = made
    late = date(2027, 2, 1)
    selection = chosen(output, campaign, late)
    assert names(selection) == ["bob/walk-t01", "bob/run-t01"]
    assert selection.left_out["ada/walk-t01"] == "consent form-1 expired on 2027-01-31"
    edit_sidecar(output.path("ada/walk-t01", "sidecar"), consent={"ref": "form-1", "expires": "2027-01-31"})
    assert "ada/walk-t01" in chosen(output, None, late).left_out
    renewed = load(tmp_path, MANIFEST.replace("2027-01-31", "2028-01-31"))
    assert names(chosen(output, renewed, late)) == ALL


def test_a_sidecar_that_does_not_say_whose_it_is(made: tuple[Campaign, Output]) -> None:
    campaign, output = made
    path = output.path("ada/walk-t01", "sidecar")
    for shot in (None, {"subject": "ada"}, {"subject": "ada", "prompt": "walk", "take": "1", "seed": 42}):
        edit_sidecar(path, shot=shot)
        assert chosen(output).left_out == {"ada/walk-t01": "its sidecar does not say whose it is"}
        assert names(chosen(output, campaign)) == ALL, "the campaign says it"
    assert json.loads(path.read_text())["name"] == "ada/walk-t01"


def test_names(made: tuple[Campaign, Output]) -> None:
    shots = chosen(*reversed(made)).shots
    assert names_of(shots, DELIVERED_NAME, ".mp4")[0] == "ada_walk_t01.mp4"
    pattern = "{subject}/{prompt}_{seed:04}_{width}x{height}_{num_frames}f{fps}.mp4"
    assert names_of(shots[:1], pattern, ".mp4") == ["ada/walk_0042_64x48_9f16.mp4"]
    assert names_of(shots[:1], "{name}", ".webp") == ["ada/walk-t01.webp"]


def test_variants_are_part_of_the_default_name_alone(tmp_path: Path) -> None:
    made = finished_campaign(tmp_path, MANIFEST + "variants: {plain: {}, soft: {sampling: {ip_scale: 0.5}}}\n")
    shots = chosen(*reversed(made)).shots
    assert names_of(shots[:2], DELIVERED_NAME, ".mp4") == ["ada_walk_t01_plain.mp4", "ada_walk_t01_soft.mp4"]
    with pytest.raises(InputErrors, match=r"get the same name 'ada_walk'; use .name., .variant."):
        names_of(shots[:2], "{subject}_{prompt}", ".mp4")


@pytest.mark.parametrize(
    ("pattern", "lines"),
    [
        ("{subjet}", ["--name '{subjet}': {subjet}: unknown field; did you mean 'subject'?"]),
        ("{fps:02}", ["--name '{fps:02}': {fps}: takes no format"]),
        ("{subject", ["--name '{subject': expected '}' before end of string: write {{ and }} for braces"]),
        ("../{name}", [f"--name: '../{name}' has a part that starts with '.' (shot {name})" for name in ALL]),
        (
            "{prompt}",
            [
                "--name: shots ada/walk-t01 and bob/walk-t01 get the same name 'walk'; use ",
                "--name: shots ada/run-t01 and bob/run-t01 get the same name 'run'; use ",
            ],
        ),
    ],
)
def test_mistakes_of_a_pattern(made: tuple[Campaign, Output], pattern: str, lines: list[str]) -> None:
    with pytest.raises(InputErrors) as error:
        names_of(chosen(*reversed(made)).shots, pattern, ".mp4")
    assert len(error.value.lines) == len(lines)
    assert all(found.startswith(line) for found, line in zip(error.value.lines, lines, strict=True)), error.value.lines
