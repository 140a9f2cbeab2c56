"""What the report's page is given: every shot, paths that open from the disk, and nothing more for a client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.inputs.review import reroll_shots
from lynx_parallel.output.auditions import AuditionRecord, write_audition
from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import Journal
from lynx_parallel.output.scores import ShotScores, write_scores
from lynx_parallel.view.report import ReportOptions, missing_posters, report_data, write_report
from tests.helpers.campaigns import MANIFEST, finish, load, write
from tests.helpers.fake_gangs import score_of
from tests.helpers.reports import data_of

HOSTILE = "</script><img src=x onerror=alert(1)>"


def made(folder: Path, manifest: str = MANIFEST) -> Campaign:
    """Two shots are done, one failed, one is blocked."""
    write(folder)
    campaign = load(folder, manifest)
    output, shots = Output(campaign.output), campaign.shots
    for shot in shots[:2]:
        finish(
            campaign, shot, shot={"subject": shot.subject.id, "prompt": shot.prompt.id, "take": 1, "seed": shot.seed},
            seconds={"denoise": 2.0, "decode": 1.0, "total": 3.0}, warnings=[], layout={"guidance": 1, "ulysses": 2},
            ranks=[{"device": "cpu"}] * 2, consent={"ref": "form-1"},
        )  # fmt: skip
        output.poster(shot.name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 2), "red").save(output.poster(shot.name))
    sidecar = output.sidecar(shots[0].name)
    assert sidecar is not None
    identity = {"dlib": score_of(0.5), "sface": score_of(None, "sface")}
    write_scores(
        output.scores(shots[0].name), ShotScores(sidecar["outputs"]["video"]["sha256"], identity, {"clip": 0.3})
    )
    write_scores(output.scores(shots[1].name), ShotScores("another video", identity))
    faces = output.private / "faces" / "ada"
    faces.mkdir(parents=True)
    for size in (8, 64):
        Image.effect_noise((size, size), 90).save(faces / f"ref-{size}.png")
    journal = Journal(output.journal)
    journal.append("failed", name=shots[2].name, reason=f"no face {HOSTILE}")
    journal.append("blocked", name=shots[3].name, reason="consent expired")
    journal.close()
    output.logs(shots[2].name, 1).mkdir(parents=True)
    return campaign


def test_every_shot_is_there(tmp_path: Path) -> None:
    campaign = made(tmp_path)
    page = write_report(Output(campaign.output), campaign)
    assert page == campaign.output / "report.html"
    data = data_of(page)
    assert data["title"] == "m.yaml"
    assert data["counts"] == {"done": 2, "failed": 1, "blocked": 1}
    assert [shot["name"] for shot in data["shots"]] == [shot.name for shot in campaign.shots]
    done, _, failed, blocked = data["shots"]
    assert (campaign.output / done["video"]).is_file()
    assert (campaign.output / done["poster"]).is_file()
    assert (campaign.output / data["subjects"][0]["crop"]).name == "ref-64.png"
    assert data["subjects"][0]["labels"] == {"team": "red"}
    assert (done["width"], done["height"], done["fps"], done["num_frames"]) == (64, 48, 16.0, 9)
    assert done["settings"]["video.crf"] == 18
    assert (done["made_by"], done["seed"]) == ("Ulysses 2 on cpu", "42")
    assert done["scores"] == {
        "dlib": 0.5, "dlib worst": 0.5, "dlib drift": 0.0, "dlib share with face": 1.0, "clip": 0.3,
    }  # fmt: skip
    assert done["score_notes"] == ["sface: no face"]
    assert (data["shots"][1]["scores"], data["shots"][1]["score_notes"]) == ({}, [])
    assert (failed["state"], failed["video"], failed["settings"]) == ("failed", None, None)
    assert (campaign.output / failed["logs"]).is_dir()
    assert blocked["reason"] == "consent expired"
    assert data["timings"][0] == {"stage": "denoise", "shots": 2, "median": 2.0, "total": 4.0}
    assert [prompt["id"] for prompt in data["prompts"]] == ["walk", "run"]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    campaign = made(tmp_path)
    page = write_report(Output(campaign.output), campaign)
    assert HOSTILE not in page.read_text()
    assert data_of(page)["shots"][2]["reason"].endswith(HOSTILE)


def test_names_are_quoted_in_addresses(tmp_path: Path) -> None:
    campaign = made(tmp_path, MANIFEST + "name: '[50%] {subject} #{prompt}?-t{take}'\n")
    first = report_data(Output(campaign.output), campaign, ReportOptions())["shots"][0]
    assert first["video"] == "%5B50%25%5D%20ada%20%23walk%3F-t1.mp4"
    assert first["poster"] == "report/%5B50%25%5D%20ada%20%23walk%3F-t1.jpg"


def test_a_client_sees_neither_settings_nor_faces(tmp_path: Path) -> None:
    campaign = made(tmp_path)
    page = write_report(Output(campaign.output), campaign, ReportOptions(client=True))
    data = data_of(page)
    assert data["client"] is True
    assert data["subjects"][0] == {"id": "ada", "crop": None, "labels": {}}
    assert data["timings"] == []
    hidden = {"settings", "scores", "score_notes", "logs", "reason", "made_by", "seconds", "warnings"}
    assert not any(hidden & shot.keys() for shot in data["shots"])
    for secret in ("form-1", "identity", "no face", "consent", "ref-64", "team"):
        assert secret not in json.dumps(data)
    assert data["shots"][0]["poster"]


def test_an_inline_page_holds_its_pictures(tmp_path: Path) -> None:
    campaign = made(tmp_path)
    page = write_report(Output(campaign.output), campaign, ReportOptions(inline=True, file=tmp_path / "one.html"))
    assert page == tmp_path / "one.html"
    data = data_of(page)
    assert data["shots"][0]["poster"].startswith("data:image/jpeg;base64,")
    assert data["subjects"][0]["crop"].startswith("data:image/png;base64,")
    private = load(tmp_path, MANIFEST + "faces: private\n")
    data = report_data(Output(private.output), private, ReportOptions(inline=True))
    assert data["subjects"][0]["crop"] is None, "a page can be sent; the crops are for their owner"


def test_a_rerolled_take_is_shown_with_what_it_was(tmp_path: Path) -> None:
    campaign = made(tmp_path)
    [take] = reroll_shots(Output(campaign.output), campaign, campaign.shots[:1])
    again = load(tmp_path)
    first = report_data(Output(again.output), again, ReportOptions())["shots"][0]
    assert (first["state"], first["seed"]) == ("to render", "42")
    assert first["reason"] == f"made with seed 42; the next render takes {take.seed}"
    assert first["history"][0]["seed"] == "42"
    assert first["video"]


def test_without_its_campaign_the_finished_shots_are_shown(tmp_path: Path) -> None:
    campaign = made(tmp_path)
    data = report_data(Output(campaign.output), None, ReportOptions())
    assert [shot["name"] for shot in data["shots"]] == sorted(shot.name for shot in campaign.shots[:2])
    assert data["shots"][0]["subject"] == "ada"


def test_posters_that_are_missing(tmp_path: Path) -> None:
    campaign = made(tmp_path)
    output = Output(campaign.output)
    assert missing_posters(output) == []
    output.poster(campaign.shots[0].name).unlink()
    assert missing_posters(output) == [campaign.shots[0].name]
    assert report_data(output, campaign, ReportOptions())["shots"][0]["poster"] is None


@pytest.mark.parametrize("broken", [{"seconds": "fast"}, {"ranks": 3}, {"shot": []}, {"layout": None}])
def test_odd_sidecars_cost_their_own_figures(tmp_path: Path, broken: dict[str, Any]) -> None:
    campaign = made(tmp_path)
    path = Output(campaign.output).path(campaign.shots[0].name, "sidecar")
    path.write_text(json.dumps({**json.loads(path.read_text()), **broken}))
    assert len(report_data(Output(campaign.output), campaign, ReportOptions())["shots"]) == 4


def test_previews_of_auditions(tmp_path: Path) -> None:
    campaign = made(tmp_path)
    output, shots = Output(campaign.output), campaign.shots
    journal = Journal(output.journal)
    for shot, event in ((shots[2], "not chosen"), (shots[3], "auditioned")):
        journal.append(event, name=shot.name, reason="identity 0.300 at step 12")
        record = AuditionRecord("d" * 64, shot.seed, 12, 50, score_of(0.3), "v" * 64, "2026-11-27T00:00:00")
        write_audition(output.audition(shot.name), record)
        output.preview(shot.name).write_bytes(b"preview")
    journal.close()
    data = data_of(write_report(output, campaign))
    rejected, waiting = data["shots"][2:]
    assert data["counts"] == {"done": 2, "not chosen": 1, "auditioned": 1}
    assert (rejected["state"], rejected["reason"]) == ("not chosen", "identity 0.300 at step 12")
    assert waiting["state"] == "auditioned"
    for row in (rejected, waiting):
        assert row["scores"] == {"dlib at step 12": 0.3}
        assert (campaign.output / row["video"]).read_bytes() == b"preview"
