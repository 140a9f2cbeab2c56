"""Posters follow their videos: published with them, moved aside with them, swept with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lynx_parallel.inputs.manifest import Campaign, Shot
from lynx_parallel.output.atomic import part_path
from lynx_parallel.output.folder import Output
from lynx_parallel.output.owners import Owners
from tests.helpers.campaigns import finish, load, write


@pytest.fixture
def made(tmp_path: Path) -> tuple[Campaign, Output, Shot]:
    """A finished shot with a poster."""
    write(tmp_path)
    campaign = load(tmp_path)
    output, shot = Output(campaign.output), campaign.shots[0]
    part = part_path(output.poster(shot.name))
    part.parent.mkdir(parents=True)
    part.write_bytes(b"poster")
    finish(campaign, shot, shot={"subject": "ada"})
    return campaign, output, shot


def test_it_is_published_with_its_video(made: tuple[Campaign, Output, Shot]) -> None:
    _, output, shot = made
    assert output.poster(shot.name) == output.folder / "report" / "ada" / "walk-t01.jpg"
    assert output.poster(shot.name).read_bytes() == b"poster"
    assert not list(output.folder.rglob("*.part"))


def test_a_shot_without_a_poster_is_published_all_the_same(made: tuple[Campaign, Output, Shot]) -> None:
    campaign, output, _ = made
    other = campaign.shots[1]
    finish(campaign, other)
    assert output.sidecar(other.name) is not None
    assert not output.poster(other.name).exists()


def test_it_is_moved_aside_with_its_video_and_belongs_to_its_subject(made: tuple[Campaign, Output, Shot]) -> None:
    _, output, shot = made
    output.supersede(shot.name, ("video", "sidecar", "latents"))
    assert not output.poster(shot.name).exists()
    [poster] = (output.private / "superseded").rglob("*.jpg")
    assert poster.read_bytes() == b"poster"
    assert (poster, "ada") in list(Owners(output).superseded()), "forget removes it"


def test_half_written_posters_are_swept(made: tuple[Campaign, Output, Shot]) -> None:
    _, output, shot = made
    ours, others = part_path(output.poster(shot.name), 2), output.folder / "report" / "mine.jpg.1.part"
    ours.write_bytes(b"half")
    others.write_bytes(b"of somebody else")
    output.sweep({shot.name})
    assert not ours.exists()
    assert others.exists()
    assert output.poster(shot.name).exists()
