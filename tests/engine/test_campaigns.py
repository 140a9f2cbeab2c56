"""Several campaigns in one run, in virtual time: one queue, and results of their own."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lynx_parallel.cli.load import load_all
from lynx_parallel.engine import parts
from lynx_parallel.engine.campaign_run import CampaignRun
from lynx_parallel.engine.driver import Driver
from lynx_parallel.engine.monitor import Watcher
from lynx_parallel.engine.observer import Observer
from lynx_parallel.engine.placement import Machine, StartOptions
from lynx_parallel.engine.summary import exit_code_of_all
from lynx_parallel.engine.supervisor import Supervisor
from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.cluster import ClusterSpec
from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.output.journal import History
from lynx_parallel.output.run_status import RunStatus, read_status
from lynx_parallel.output.shard import FolderLock, Shard
from lynx_parallel.plan.parts import plan_parts
from lynx_parallel.plan.shards import shots_digest
from lynx_parallel.plan.weights import find_weights
from lynx_parallel.view.lines import Lines
from tests.helpers.campaigns import draw, write
from tests.helpers.fake_gangs import RANKS, VirtualTime, World
from tests.helpers.planned import TODAY, parts_of


class Run:
    """One run of several campaigns, without Ray."""

    def __init__(
        self,
        campaigns: Iterable[Campaign],
        monkeypatch: pytest.MonkeyPatch,
        outcomes: Iterable[str] = (),
        stop_after: float | None = None,
        shard: Shard | None = None,
    ):
        self.shard = shard
        self.world = World(iter(outcomes))
        self.lines: list[str] = []
        self.seen: list[RunStatus] = []
        self.events: list[Mapping[str, Any]] = []
        self.observer = Observer(self.lines.append, watch=self.seen.append, event=self.events.append)
        self.campaigns = [self._of(campaign) for campaign in campaigns]
        self.driver = Driver(self.campaigns, ClusterSpec(), self.observer)
        monkeypatch.setattr(
            parts, "Supervisor", partial(Supervisor, start=partial(self.world.start), hold=self.world.hold)
        )
        for campaign in self.campaigns:
            campaign.look(self.observer)
        chosen = [(campaign, campaign.todo) for campaign in self.campaigns if campaign.todo]
        with asyncio.Runner(loop_factory=VirtualTime) as runner, self.driver._locked([one for one, _ in chosen]):
            self.turns = parts.together(self.driver._runs(chosen))
            if chosen:
                runner.run(self._go(chosen, stop_after))
            for campaign, _ in chosen:
                campaign.finish()
        for campaign in self.campaigns:
            campaign.close(0.0)

    def _of(self, campaign: Campaign) -> CampaignRun:
        each = [replace(part, weights=find_weights(part.campaign.pipeline.model)) for part in parts_of(campaign, {})]
        return CampaignRun(campaign, each, partial(plan_parts, campaign, each, today=TODAY), shard=self.shard)

    async def _go(self, chosen: Any, stop_after: float | None) -> None:
        runs = parts.InTurn(self.turns, StartOptions("cpu", True, (Machine("here", "127.0.0.1", RANKS),)))
        self.driver._watcher = watcher = Watcher(chosen, self.observer, asyncio.get_running_loop().time)
        following = asyncio.ensure_future(watcher.follow(runs))
        work = asyncio.ensure_future(runs.make_all())
        if stop_after is not None:
            await asyncio.sleep(stop_after)
            self.driver._stopped_by(15)
            await runs.save_and_stop(work)
        with contextlib.suppress(asyncio.CancelledError):
            await work
        following.cancel()


@pytest.fixture
def two(tmp_path: Path, campaign_of: Any) -> list[Campaign]:
    """Two campaigns with the same names of shots, and the same file name."""
    one, other = campaign_of(tmp_path / "a"), campaign_of(tmp_path / "b")
    return [one, replace(other, path=tmp_path / "other" / one.path.name)]


def test_one_queue_and_results_of_their_own(two: list[Campaign], monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(two, monkeypatch)
    assert run.world.starts == 1, "one gang for both: the weights are loaded once"
    assert len(run.turns) == 1
    apart = 0.0
    for campaign in run.campaigns:
        assert len(campaign.summary.rendered) == 13
        assert {name for name, _ in campaign.output.sidecars()} == {shot.name for shot in campaign.campaign.shots}
        assert len(History.read(campaign.output.journal).done) == 13
        status = read_status(campaign.output.status)
        assert status is not None
        assert (status.rendered, status.to_make, status.fraction, status.exit_code) == (13, 13, 1.0, 0)
        apart += status.gpu_seconds
    # Shots of the highest priority come first, whichever campaign they are of.
    made = [event["name"] for event in run.events if event["event"] == "done"]
    assert made[:2] == ["b/walk-t03", "b/walk-t03"]
    assert [line for line in run.lines if line.startswith("[26/26] rendered")]
    last = run.seen[-1]
    assert (last.rendered, last.to_make, last.exit_code, last.fraction) == (26, 26, 0, 1.0)
    assert last.gpu_seconds == pytest.approx(2 * last.seconds, rel=0.1)
    assert apart == pytest.approx(last.gpu_seconds, rel=0.1)
    assert apart < last.gpu_seconds - 5, "the start of the gang counts for neither campaign alone"
    outputs = {event["output"] for event in run.events if event["event"] == "done"}
    assert outputs == {str(campaign.output) for campaign in two}


def test_a_subject_that_fails_in_one_campaign_is_tried_in_the_other(
    two: list[Campaign], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Subjects of two campaigns may share an id, and be different people."""
    run = Run(two, monkeypatch, ["done", "subject"])
    failed = [len(campaign.summary.failed) for campaign in run.campaigns]
    assert sorted(failed) == [0, 7], "the subject's other shots are not tried"
    assert sum(len(campaign.summary.rendered) for campaign in run.campaigns) == 26 - 7
    assert exit_code_of_all(run.driver.summaries) == 1
    [title] = {campaign.title for campaign in run.campaigns if campaign.summary.failed}
    assert all(line.startswith(f"{title}: b/") for line in run.lines if ": failed: " in line)
    assert all(one.name.startswith(f"{title}: ") for one in run.seen[-1].failures)


def test_a_stop_ends_both(two: list[Campaign], monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(two, monkeypatch, stop_after=100.0)
    assert [campaign.summary.exit_code for campaign in run.campaigns] == [143, 143]
    assert len([line for line in run.lines if "stopping" in line]) == 1
    again = Run(two, monkeypatch)
    for campaign in again.campaigns:
        assert len(campaign.summary.rendered) + len(campaign.summary.skipped) == 13


def test_other_weights_have_their_own_turn(two: list[Campaign], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another quality of the video shares the ranks; another model does not."""
    spec = two[0].pipeline
    video = spec.video.model_copy(update={"crf": 30})
    run = Run([two[0], replace(two[1], pipeline=spec.model_copy(update={"video": video}))], monkeypatch)
    assert len(run.turns) == 1
    model = spec.model.model_copy(update={"vae_dtype": "tf32"})
    third = replace(two[1], output=two[1].output / "third", pipeline=spec.model_copy(update={"model": model}))
    run = Run([replace(two[0], output=two[0].output / "again"), third], monkeypatch)
    assert len(run.turns) == 2
    assert [len(campaign.summary.rendered) for campaign in run.campaigns] == [13, 13]


def test_two_manifests_with_one_output_folder(tmp_path: Path, demo: Path) -> None:
    draw(tmp_path)
    write(tmp_path)
    (tmp_path / "n.yaml").write_text((tmp_path / "m.yaml").read_text())
    with pytest.raises(InputErrors, match=r"is also that of .*m.yaml: give each an output folder of its own") as error:
        load_all([str(tmp_path / "m.yaml"), str(tmp_path / "n.yaml")], None, None, False, Lines(sys.stdout))
    assert len(error.value.lines) == 1


def test_the_mistakes_of_all_manifests_are_reported(tmp_path: Path, demo: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("version: 1\nsubjets: {}\n")
    with pytest.raises(InputErrors) as error:
        load_all([str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")], None, None, False, Lines(sys.stdout))
    for name in ("a.yaml", "b.yaml"):
        assert any(name in line for line in error.value.lines)


def test_shards_make_every_shot_once(tmp_path: Path, campaign_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = campaign_of(tmp_path / "out")
    made: list[str] = []
    for number in (1, 2, 3):
        run = Run([campaign], monkeypatch, shard=Shard(number, 3))
        [one] = run.campaigns
        assert one.summary.exit_code == 0
        made += one.summary.rendered
        status = read_status(tmp_path / "out" / ".lynx" / "shards" / f"{number}-of-3" / "status.json")
        assert status is not None
        assert status.total == len(one.summary.rendered)
        assert run.lines[0].startswith(f"{campaign.path.name}, shard {number}/3: ")
    assert sorted(made) == sorted(shot.name for shot in campaign.shots)
    whole = Run([campaign], monkeypatch)
    assert len(whole.campaigns[0].summary.skipped) == 13
    records = sorted(path.name for path in (tmp_path / "out" / ".lynx" / "manifests").iterdir())
    assert len([name for name in records if name.endswith("-of-3")]) == 3


def test_a_shard_keeps_the_prompts_of_another_at_work(
    tmp_path: Path, campaign_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = campaign_of(tmp_path / "out")
    private = tmp_path / "out" / ".lynx"
    found = parts_of(campaign, {})
    digest = shots_digest(plan_parts(campaign, found, today=TODAY).items)
    with FolderLock(private, Shard(2, 2), digest):
        Run([campaign], monkeypatch, shard=Shard(1, 2))
        assert list((private / "prompts").iterdir())
    Run([campaign], monkeypatch, shard=Shard(2, 2))
    assert not (private / "prompts").exists()
