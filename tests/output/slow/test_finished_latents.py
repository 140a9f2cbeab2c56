"""Latents that are finished while their video is not: nothing is denoised twice."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from lynx_parallel.engine.campaign_run import CampaignRun
from lynx_parallel.engine.driver import Driver
from lynx_parallel.engine.observer import Observer
from lynx_parallel.errors import DamagedError, RenderError
from lynx_parallel.inputs.cluster import ClusterSpec
from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.output import folder as ledger
from lynx_parallel.output.atomic import atomic_write
from lynx_parallel.output.checksums import add_checksum, read_metadata
from lynx_parallel.output.finished_latents import (
    all_unpublished,
    find_latents,
    latents_metadata,
    unpublished_path,
    write_record,
)
from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import Journal
from lynx_parallel.plan.digests import shot_digests
from lynx_parallel.plan.plan import Item, Plan, make_plan
from lynx_parallel.rank.messages import EncodeOrder, Rendered, RenderOrder
from lynx_parallel.subject.forget import find
from tests.helpers.campaigns import MANIFEST, WEIGHTS, finish, load, write
from tests.helpers.fake_gangs import FakeGang, World, supervise
from tests.helpers.planned import parts_of

ADA = "ada/walk-t01"
TODAY = date(2026, 1, 1)


def latents_of(digest: str) -> bytes:
    return add_checksum(save({"latents": torch.zeros(1, 16, 3, 6, 8)}), latents_metadata(digest, {"prompt": "A walk."}))


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def ada(campaign: Campaign) -> Item:
    return next(i for i in make_plan(campaign, WEIGHTS, today=TODAY).items if i.shot.name == ADA)


def test_the_header_says_what_the_latents_are(folder: Path) -> None:
    put(folder / "a.safetensors", latents_of("d" * 64))
    metadata = read_metadata(folder / "a.safetensors")
    assert metadata
    assert metadata["latents_digest"] == "d" * 64
    assert json.loads(metadata["settings"]) == {"prompt": "A walk."}
    assert latents_of("d" * 64) == latents_of("d" * 64)  # metadata in random order would differ soon


@pytest.mark.parametrize("place", ["published", "waiting"])
def test_plan_encodes_finished_latents(folder: Path, place: str) -> None:
    campaign = load(folder)
    output, digest = Output(campaign.output), shot_digests(campaign, campaign.shots[0], WEIGHTS).latents
    path = output.path(ADA, "latents") if place == "published" else unpublished_path(output, ADA)
    put(path, latents_of(digest))
    item = ada(campaign)
    assert (item.action, item.reason) == ("encode", "its latents are finished, its video is not")
    assert (item.stale, item.latents) == (False, path)
    # Any other settings need other latents.
    other = ada(load(folder, MANIFEST, "sampling.seed=7"))
    assert (other.action, other.latents) == ("render", None)
    # Another crf does not.
    assert ada(load(folder, MANIFEST, "video.crf=30")).action == "encode"
    # A file beside them is moved aside.
    put(output.path(ADA, "video"), b"somebody's")
    assert (ada(campaign).action, ada(campaign).stale) == ("encode", True)
    # What is cut off is not finished.
    path.write_bytes(path.read_bytes()[:-1])
    assert ada(campaign).action == "render"


def test_finished_latents_under_old_files(folder: Path) -> None:
    """New settings were rendered, the video failed: the old files stay until the new ones are done."""
    finish(load(folder), load(folder).shots[0])
    newer = load(folder, MANIFEST, "sampling.seed=7")
    output = Output(newer.output)
    assert ada(newer).action == "render"
    put(unpublished_path(output, ADA), latents_of(shot_digests(newer, newer.shots[0], WEIGHTS).latents))
    item = ada(newer)
    assert (item.action, item.reason, item.stale) == ("encode", "changed: sampling.seed", True)
    assert item.latents == unpublished_path(output, ADA)
    assert ada(load(folder)).action == "done"


def test_latents_of_others_are_not_taken(folder: Path) -> None:
    """Files without a digest or a checksum: of an earlier version, or somebody's."""
    campaign = load(folder)
    output, digest = Output(campaign.output), shot_digests(campaign, campaign.shots[0], WEIGHTS).latents
    path = output.path(ADA, "latents")
    plain = save({"latents": torch.zeros(1)})
    unsealed = save({"latents": torch.zeros(1)}, {"latents_digest": digest})
    for data in (b"", b"\xff" * 99, plain, unsealed, add_checksum(plain, {}), latents_of("0" * 64)):
        put(path, data)
        assert (ada(campaign).action, ada(campaign).reason) == ("render", "files without a readable sidecar")
    path.unlink()
    os.mkfifo(path)  # reading it would never end
    assert ada(campaign).action == "render"


class Encoder(World):
    """A world whose gangs make true latents, and whose encoder fails.

    Attributes:
        fails: how many videos.
        damaged: names of shots whose saved latents are damaged.
        renders, encodings: names, in order.
        denoise: of each gang that was started.
    """

    def __init__(self, fails: int = 0, damaged: tuple[str, ...] = ()):
        super().__init__(iter(()))
        self.fails = fails
        self.damaged = set(damaged)
        self.renders: list[str] = []
        self.encodings: list[str] = []
        self.denoise: list[bool] = []

    async def start(self, size: int, load: Any, *rest: Any) -> Any:
        gang = await super().start(size, load, *rest)
        self.denoise.append(load.denoise)
        gang.__class__ = EncodingGang
        return gang

    def video(self, path: Path) -> dict[str, Any]:
        self.fails -= 1
        if self.fails >= 0:
            raise RenderError("cannot encode: ffmpeg ended with status 1")
        path.write_text("whole")
        return {"size": 5, "sha256": "0" * 64}


class EncodingGang(FakeGang):
    world: Encoder

    async def render(self, order: RenderOrder, prepared: Any) -> bool:
        assert self.load.denoise
        parts = order.parts
        self.world.renders.append(order.shot.name)
        order.logs.mkdir(parents=True)
        await asyncio.sleep(60)
        metadata = latents_metadata(order.digest, order.settings)
        data = add_checksum(save({"latents": torch.zeros(1, 16, 3, 6, 8)}), metadata)
        with atomic_write(parts["latents"]) as part:
            part.write_bytes(data)
        return True

    async def finish(self, order: RenderOrder) -> Rendered:
        parts = order.parts
        latents = {"size": parts["latents"].stat().st_size, "sha256": "0" * 64}
        return Rendered({"latents": latents, "video": self.world.video(parts["video"])}, {}, {})

    async def encode(self, order: EncodeOrder) -> Rendered:
        shot, latents, parts = order.shot, order.latents, order.parts
        self.world.encodings.append(shot.name)
        await asyncio.sleep(1)
        if shot.name in self.world.damaged:
            self.world.damaged.remove(shot.name)
            raise DamagedError(f"{latents}: the latents are damaged: their checksum differs")
        assert read_metadata(latents)
        outputs = {"latents": {"size": latents.stat().st_size, "sha256": "0" * 64}}
        return Rendered({**outputs, "video": self.world.video(parts["video"])}, {}, {})


def one_shot(campaign_of: Any, folder: Path, *, save_latents: bool = True) -> Campaign:
    campaign = campaign_of(folder)
    return replace(campaign, shots=campaign.shots[:1], save_latents=save_latents)


def planned(campaign: Campaign) -> Plan:
    return make_plan(campaign, {}, today=date.today())


def test_a_retry_only_encodes(campaign_of: Any, tmp_path: Path) -> None:
    campaign, world = one_shot(campaign_of, tmp_path), Encoder(fails=1)
    name = campaign.shots[0].name
    summary, _, _ = supervise(campaign, world, ClusterSpec())
    assert (world.renders, world.encodings) == ([name], [name])
    assert (summary.failed, summary.retries) == ([], 1)
    assert len(planned(campaign).of("done")) == 1


@pytest.mark.parametrize("save_latents", [True, False])
def test_the_next_run_only_encodes(campaign_of: Any, tmp_path: Path, save_latents: bool) -> None:
    campaign, world = one_shot(campaign_of, tmp_path, save_latents=save_latents), Encoder(fails=9)
    output, name = Output(campaign.output), campaign.shots[0].name
    summary, _, _ = supervise(campaign, world, ClusterSpec())
    assert [failed for failed, _ in summary.failed] == [name]
    assert world.renders == [name]
    there = output.path(name, "latents") if save_latents else unpublished_path(output, name)
    [item] = planned(campaign).items
    assert (item.action, item.latents) == ("encode", there)
    assert output.path(name, "latents").exists() is save_latents

    again = Encoder()
    supervise(campaign, again, ClusterSpec())
    assert (again.renders, again.encodings, again.denoise) == ([], [name], [False])
    assert len(planned(campaign).of("done")) == 1
    assert not all_unpublished(output)
    assert not list((output.private / "latents").rglob("*.json"))
    sidecar = output.sidecar(name)
    assert sidecar
    assert sidecar["layout"] == {"guidance": 1, "ring": 1, "ulysses": 2}  # of the render
    assert set(sidecar["outputs"]) == ({"video", "latents"} if save_latents else {"video"})


def test_old_files_stay_until_the_new_video_is_made(campaign_of: Any, tmp_path: Path) -> None:
    campaign = one_shot(campaign_of, tmp_path)
    output, shot = Output(campaign.output), campaign.shots[0]
    supervise(campaign, Encoder(), ClusterSpec())
    old = {path.name: path.read_bytes() for path in output.path(shot.name, "video").parent.iterdir()}
    seed = shot.sampling.model_copy(update={"seed": 7})
    newer = replace(campaign, shots=(replace(shot, sampling=seed),))
    supervise(newer, Encoder(fails=9), ClusterSpec())
    assert {path.name: path.read_bytes() for path in output.path(shot.name, "video").parent.iterdir()} == old
    again = Encoder()
    supervise(newer, again, ClusterSpec())
    assert (again.renders, again.encodings) == ([], [shot.name])
    kept = [path for path in (output.private / "superseded").rglob("*") if path.is_file()]
    assert {path.name: path.read_bytes() for path in kept} == old
    assert len(planned(newer).of("done")) == 1
    assert find_latents(output, shot.name, planned(newer).items[0].digests.latents_digests, published=True)


def test_latents_published_without_their_video_are_encoded(
    campaign_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old files are aside and the new latents in place when the video cannot be published."""
    campaign = one_shot(campaign_of, tmp_path)
    output, shot = Output(campaign.output), campaign.shots[0]
    supervise(campaign, Encoder(), ClusterSpec())
    newer = replace(campaign, shots=(replace(shot, sampling=shot.sampling.model_copy(update={"seed": 7})),))
    failures = iter([True])
    real = ledger.publish

    def publish(part: Path, path: Path) -> None:
        if path.suffix == ".mp4" and next(failures, False):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        real(part, path)

    monkeypatch.setattr(ledger, "publish", publish)
    world = Encoder()
    supervise(newer, world, ClusterSpec())
    assert (world.renders, world.encodings) == ([shot.name], [shot.name])
    assert len(planned(newer).of("done")) == 1
    aside = [path for path in (output.private / "superseded").rglob("*.safetensors") if path.is_file()]
    assert len(aside) == 1  # the old latents, not the new ones


def test_a_killed_driver_finds_the_latents_again(campaign_of: Any, tmp_path: Path) -> None:
    """The rank had written them; nobody was left to publish them."""
    campaign = one_shot(campaign_of, tmp_path)
    output, [item] = Output(campaign.output), planned(campaign).items
    put(unpublished_path(output, item.shot.name), latents_of(item.digests.latents))
    world = Encoder()
    supervise(campaign, world, ClusterSpec())
    assert (world.renders, world.encodings) == ([], [item.shot.name])
    assert output.path(item.shot.name, "latents").read_bytes() == latents_of(item.digests.latents)


def test_a_killed_driver_had_no_time_to_tidy_up(folder: Path) -> None:
    """The sidecar was written; the waiting latents and their record were not removed."""
    campaign = load(folder)
    output = Output(campaign.output)
    for shot in campaign.shots:
        finish(campaign, shot)
        put(unpublished_path(output, shot.name), latents_of("0" * 64))
        write_record(output, shot.name, {"layout": {}})
    journal = Journal(output.journal)
    replan = lambda: make_plan(campaign, WEIGHTS, today=TODAY)  # noqa: E731
    driver = Driver([CampaignRun(campaign, parts_of(campaign, {}), replan)], ClusterSpec(), Observer(lambda line: None))  # type: ignore[arg-type]
    driver.run()
    journal.close()
    assert not [path for path in (output.private / "latents").rglob("*") if path.is_file()]


def test_damaged_latents_are_rendered_again(campaign_of: Any, tmp_path: Path) -> None:
    """Gangs that encode hold no transformer, so they are restarted."""
    campaign = campaign_of(tmp_path)
    supervise(campaign, Encoder(), ClusterSpec(gangs=2))
    video = campaign.pipeline.video.model_copy(update={"crf": 30})
    changed = replace(campaign, pipeline=campaign.pipeline.model_copy(update={"video": video}))
    names = [shot.name for shot in campaign.shots]
    hurt = (names[0], names[-1])
    world, said = Encoder(damaged=hurt), list[str]()
    summary, _, error = supervise(changed, world, ClusterSpec(gangs=2), say=said.append)
    assert not error
    assert not summary.failed
    assert sorted(world.renders) == sorted(hurt) == sorted(summary.rendered)
    assert sorted(world.encodings) == sorted(names)
    assert world.denoise[:2] == [False, False]
    assert set(world.denoise[2:]) == {True}
    output = Output(campaign.output)
    assert {str(path.relative_to(output.private / "damaged")) for path in output.private.rglob("damaged/*/*")} == {
        f"{name}.latents.safetensors" for name in hurt
    }
    lines = [line for line in said if "checksum" in line]
    assert len(lines) == 2
    assert all("their checksum differs; moved to " in line and "\n" not in line for line in lines)
    assert len(planned(changed).of("done")) == len(names)


def test_nothing_is_rendered_where_it_cannot_be_published(campaign_of: Any, tmp_path: Path) -> None:
    campaign = one_shot(campaign_of, tmp_path)
    output, shot = Output(campaign.output), campaign.shots[0]
    supervise(campaign, Encoder(), ClusterSpec())
    (output.private / "superseded").write_text("a file in the folder's place")
    newer = replace(campaign, shots=(replace(shot, sampling=shot.sampling.model_copy(update={"seed": 7})),))
    world = Encoder()
    summary, _, _ = supervise(newer, world, ClusterSpec())
    assert world.renders == []
    [(name, reason)] = summary.failed
    assert (name, "superseded" in reason, "None" in reason) == (shot.name, True, False)


def test_waiting_and_damaged_latents_are_forgotten_with_their_subject(folder: Path, elsewhere: Path) -> None:
    """A subject's folder may be a link; his videos are listed all the same."""
    campaign = load(folder)
    output = Output(campaign.output)
    (output.folder).mkdir()
    (output.folder / "ada").symlink_to(elsewhere)
    finish(campaign, campaign.shots[0])
    journal = Journal(output.journal)
    for shot in campaign.shots:
        journal.append("attempt", name=shot.name, subject=shot.subject.id, latents=f"{shot.subject.id:0<64}")
    journal.close()
    damaged = output.private / "damaged"
    paths = [
        unpublished_path(output, "ada/run-t01"), unpublished_path(output, "bob/run-t01"),
        damaged / "ada/run-t01.latents.safetensors.2", damaged / "bob/run-t01.latents.safetensors",
        damaged / f"{'ada':0<64}.safetensors",
    ]  # fmt: skip
    write_record(output, "ada/run-t01", {})
    for path in paths:
        put(path, b"latents")
    found = find({"ada": {output.folder}}).subjects["ada"]
    kept = [str(path.relative_to(output.private)) for path in found.unfinished]
    assert kept == [
        "latents/ada/run-t01.json", "latents/ada/run-t01.latents.safetensors",
        "damaged/ada/run-t01.latents.safetensors.2", f"damaged/{'ada':0<64}.safetensors",
    ]  # fmt: skip
    assert [path.name for path in found.videos] == ["walk-t01.mp4"]
