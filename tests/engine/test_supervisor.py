"""The supervisor with gangs of given failures, in virtual time."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lynx_parallel.engine.placement import NoRoom, StartOptions
from lynx_parallel.engine.summary import Summary
from lynx_parallel.errors import CheckpointError, ClusterError, LynxError, RenderError
from lynx_parallel.inputs.cluster import ClusterSpec
from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.output.crops import Crops
from lynx_parallel.output.folder import Output
from lynx_parallel.plan.digests import crops_source, subject_key
from lynx_parallel.plan.plan import make_plan
from lynx_parallel.rank.messages import Hello, RankConfig, Rendered, RenderOrder
from tests.helpers.fake_gangs import FakeGang, World, supervise


def run_with(campaign_of: Any, folder: Path, outcomes: list[str], **options: Any) -> tuple[Summary, World, str]:
    world = World(iter(outcomes))
    summary, _, error = supervise(campaign_of(folder), world, ClusterSpec(**options))
    return summary, world, error


def test_a_bad_subject_costs_its_own_shots_alone(campaign_of: Any, tmp_path: Path) -> None:
    summary, world, _ = run_with(campaign_of, tmp_path, ["done", "subject"])
    assert {name.split("/")[0] for name, _ in summary.failed} == {"b"}
    assert {name.split("/")[0] for name in summary.rendered} == {"a"}
    assert {reason for _, reason in summary.failed} == {"no face"}
    assert summary.codes == {name: "LX301" for name, _ in summary.failed}
    records = [json.loads(line) for line in Output(tmp_path).journal.read_text().splitlines()]
    assert {one["code"] for one in records if one["event"] == "failed"} == {"LX301"}
    assert sum(world.attempts.values()) == 1 + 6  # one look at the subject was enough


def test_out_of_memory_makes_gangs_larger_and_fewer(campaign_of: Any, tmp_path: Path) -> None:
    started: list[tuple[int, bool, bool]] = []
    sizes: list[set[int]] = []
    world = World(iter([*["done"] * 2, *["memory"] * 2] * 2))  # both start, both fail
    start = world.start

    async def noting(size: int, load: RankConfig, *rest: Any) -> FakeGang:
        started.append((size, load.shard, load.tiled_decode))
        sizes.append({task.layout.size for task in load.tasks})
        return await start(size, load, *rest)

    world.start = noting  # type: ignore[method-assign]
    summary, _, _ = supervise(campaign_of(tmp_path), world, ClusterSpec(gangs=2))
    assert sizes == [{2}, {2}, {2}, {2}, {4}]  # what ranks predict their memory from
    assert not summary.failed
    assert started == [(2, False, False), (2, False, False), (2, True, False), (2, True, False), (4, True, False)]
    sidecars = dict(Output(tmp_path).sidecars())
    assert {sidecar["layout"]["ulysses"] for sidecar in sidecars.values()} == {4}


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_a_gang_that_grows_takes_the_place_of_one_at_work(campaign_of: Any, tmp_path: Path, failures: int) -> None:
    """One runs out of memory again and again, while shots of the others succeed, which then must make room."""
    outcomes = ["done", "done", *["memory", "done", "done"] * failures]
    summary, _, _ = supervise(campaign_of(tmp_path / "2+2"), World(iter(outcomes)), ClusterSpec(gangs=2))
    assert len(summary.rendered) == 13
    world = World(iter(["done", "done", *outcomes]))
    summary, _, _ = supervise(campaign_of(tmp_path / "1+1+1+1"), world, ClusterSpec(), "cuda")  # a GPU each
    assert len(summary.rendered) == 13


@pytest.mark.parametrize("error", [NoRoom("no room"), RenderError("the GPU has fallen off the bus", "died")])
def test_one_gang_that_cannot_start_leaves_the_others_to_work(
    campaign_of: Any, tmp_path: Path, error: LynxError
) -> None:
    world = World(iter(()))
    start, calls = world.start, 0

    async def second_fails(*arguments: Any) -> FakeGang:
        nonlocal calls
        calls += 1
        if calls == 1:
            await asyncio.sleep(600)  # reading the weights
            return await start(*arguments)
        await asyncio.sleep(120)
        raise error

    world.start = second_fails  # type: ignore[method-assign]
    summary, _, ended = supervise(campaign_of(tmp_path), world, ClusterSpec(gangs=2))
    assert not ended
    assert len(summary.rendered) == 13


def test_a_gang_that_was_given_up_counts_no_more(campaign_of: Any, tmp_path: Path) -> None:
    """Of three, the first never starts; then the two others run out of memory, and are to grow into one."""
    world, tasks = World(iter(["done"] * 10 + ["memory"])), []

    async def first_fails(*arguments: Any) -> FakeGang:
        tasks.append(asyncio.current_task())  # one for each slot
        if tasks[-1] is tasks[0]:
            raise RenderError("the GPU has fallen off the bus", "died")
        return await World.start(world, *arguments)

    world.start = first_fails  # type: ignore[method-assign]
    summary, _, error = supervise(campaign_of(tmp_path), world, ClusterSpec(max_gpus=3), "cuda")
    assert not error
    assert len(summary.rendered) == 13


def test_a_folder_that_is_not_seen_for_a_moment_is_no_end(campaign_of: Any, tmp_path: Path) -> None:
    """Of a shared disk, when a gang is restarted."""
    world, calls = World(iter(["done", "died"])), itertools.count(1)

    async def second_fails(*arguments: Any) -> FakeGang:
        if next(calls) == 2:
            raise ClusterError("far does not see /mnt/out")
        return await World.start(world, *arguments)

    world.start = second_fails  # type: ignore[method-assign]
    summary, _, error = supervise(campaign_of(tmp_path), world, ClusterSpec())
    assert not error
    assert len(summary.rendered) == 13


def when_begun(world: World, number: int, change: Callable[[], object]) -> None:
    """Has something happen when the gang has begun so many shots."""
    render, begun = FakeGang.render, itertools.count(1)

    async def start(*arguments: Any) -> FakeGang:
        gang = await World.start(world, *arguments)

        async def changing(*arguments: Any) -> Rendered:
            if next(begun) == number:
                change()
            return await render(gang, *arguments)

        gang.render = changing  # type: ignore[method-assign]
        return gang

    world.start = start  # type: ignore[method-assign]


def embedding_of_a(campaign: Campaign) -> Path:
    [path] = {shot.subject.embedding for shot in campaign.shots if shot.subject.id == "a"}
    assert path is not None
    return path


@pytest.mark.parametrize("begun", [2, 3])
def test_a_lost_file_costs_its_subject_alone(campaign_of: Any, tmp_path: Path, begun: int) -> None:
    """Lost before the first shot with it, or while that is made; restarted gangs do not need it."""
    campaign, world = campaign_of(tmp_path), World(iter(["done", "done", "died"] * 2))
    when_begun(world, begun, embedding_of_a(campaign).unlink)
    summary, plan, error = supervise(campaign, world, ClusterSpec())
    assert not error
    assert sorted(summary.rendered) == sorted(item.shot.name for item in plan.items if item.shot.subject.id == "b")
    assert {reason.rpartition("/")[2] for _, reason in summary.failed} == {"a.npy: No such file or directory"}


@pytest.mark.parametrize("begun", [2, 8])
def test_a_file_that_changed_is_not_rendered_nor_its_state_kept(campaign_of: Any, tmp_path: Path, begun: int) -> None:
    """Neither before the first shot with it nor while that is made; the state may be of the other face."""
    campaign, world = campaign_of(tmp_path), World(iter(()))
    output = Output(campaign.output)
    todo = make_plan(campaign, {}, today=date.today()).of("render")
    for item in todo:
        output.resume_state(item.digests.latents).parent.mkdir(parents=True, exist_ok=True)
        output.resume_state(item.digests.latents).touch()
    when_begun(world, begun, lambda: np.save(embedding_of_a(campaign), np.zeros(512, np.float32)))
    summary, _, _ = supervise(campaign, world, ClusterSpec())
    assert {name.split("/")[0] for name in summary.rendered} == {"b"}
    assert {reason for _, reason in summary.failed} == {
        "its picture or embedding changed after the run began; run again"
    }
    assert sum(world.attempts.values()) == max(7, begun)
    left = [item for item in todo if output.resume_state(item.digests.latents).exists()]
    assert len(left) == 5
    assert {item.shot.subject.id for item in left} == {"a"}  # those are of the first face


@pytest.mark.parametrize("moment", [2.0, 30.0])
def test_a_stop_is_not_kept_waiting_by_a_rank_that_does_not_answer(
    campaign_of: Any, tmp_path: Path, moment: float
) -> None:
    """While gangs are started, and while they work."""
    world = World(iter(()))
    summary, _, error = supervise(campaign_of(tmp_path), world, ClusterSpec(gangs=2), stop_after=moment)
    assert not error
    assert not summary.rendered
    assert not summary.failed
    assert world.ranks == 0


def test_a_full_disk_ends_the_run_with_the_rest_not_tried(campaign_of: Any, tmp_path: Path) -> None:
    summary, _, _ = run_with(campaign_of, tmp_path, ["disk"] * 100)
    assert not summary.rendered
    first, *rest = (reason for _, reason in summary.failed)
    assert first.startswith("somewhere: No space left on device (logs: ")
    assert rest == [f"not tried: {first}"] * 12


def test_a_gang_that_cannot_start_at_all(campaign_of: Any, tmp_path: Path) -> None:
    async def fails(*_: Any) -> FakeGang:
        raise CheckpointError("model.safetensors: no key x")

    world = World(iter(()))
    world.start = fails  # type: ignore[method-assign]
    summary, _, error = supervise(campaign_of(tmp_path), world, ClusterSpec())
    assert error == "model.safetensors: no key x"
    assert not summary.failed


def test_starts_are_tried_again_but_not_for_ever(campaign_of: Any, tmp_path: Path) -> None:
    summary, _, error = run_with(campaign_of, tmp_path / "few", ["died starting"] * 3)
    assert not error
    assert len(summary.rendered) == 13
    _, _, error = run_with(campaign_of, tmp_path / "many", ["died starting"] * 30)
    assert error == "no ranks could be started: a rank died. Run lynx-render doctor on this machine."


NO_DRIVER = "RuntimeError: Found no NVIDIA driver on your system."


def test_a_fault_that_every_shot_shares_ends_the_run(campaign_of: Any, tmp_path: Path) -> None:
    world = World(iter(()), faults={"here": NO_DRIVER})
    summary, plan, error = supervise(campaign_of(tmp_path), world, ClusterSpec())
    assert not error
    assert summary.exit_code == 3
    assert summary.fault.startswith(f"every shot fails in the same way, last on here: {NO_DRIVER[:-1]}. Install the")
    assert "\n" not in summary.fault
    assert set(world.attempts.values()) == {2}
    assert 2 <= len(world.attempts) <= 4  # until two of them, each with its retry, differ in subject and prompt
    assert len(summary.failed) == len(plan.items)
    untried = [reason for _, reason in summary.failed if reason == f"not tried: {summary.fault}"]
    assert len(untried) == len(plan.items) - len(world.attempts)
    tried = {name for name, reason in summary.failed if not reason.startswith("not tried")}
    assert {name for name, code in summary.codes.items() if code == "LX402"} == tried
    assert {code for name, code in summary.codes.items() if name not in tried} == {"LX206"}
    events = [json.loads(line)["event"] for line in Output(tmp_path).journal.read_text().splitlines()]
    assert events.count("fault") == 1
    assert events.count("failed") == len(world.attempts)


def test_failures_after_a_success_are_the_shots_own(campaign_of: Any, tmp_path: Path) -> None:
    world = World(iter(()))
    when_begun(world, 2, lambda: world.faults.update(here="ValueError: of the prompt"))
    summary, _, error = supervise(campaign_of(tmp_path), world, ClusterSpec())
    assert not error
    assert not summary.fault
    assert summary.exit_code == 1
    assert len(summary.failed) == 12
    assert len(summary.rendered) == 1


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_one_bad_machine_is_left_out_and_the_rest_works(campaign_of: Any, tmp_path: Path, device: str) -> None:
    world = World(iter(()), machines=("bad", "good"), faults={"bad": NO_DRIVER})
    summary, plan, error = supervise(campaign_of(tmp_path), world, ClusterSpec(gangs=2), device)
    assert not error
    assert sorted(summary.rendered) == sorted(item.shot.name for item in plan.items)
    assert summary.exit_code == 0
    assert summary.left_out
    assert all(
        re.match(rf"bad(, GPU \d)?: shots fail there in the same way: {NO_DRIVER}", line) for line in summary.left_out
    )
    assert not world.on["bad"] - {gpu for _, gpu in world.held}


def test_a_fault_of_all_machines_ends_the_run(campaign_of: Any, tmp_path: Path) -> None:
    world = World(iter(()), machines=("a", "b"), faults={"a": NO_DRIVER, "b": NO_DRIVER})
    summary, plan, error = supervise(campaign_of(tmp_path), world, ClusterSpec(gangs=4), "cuda")
    assert not error
    assert summary.exit_code == 3
    assert NO_DRIVER in summary.fault
    assert not summary.rendered
    assert sum(world.attempts.values()) <= 12
    assert len(summary.failed) == len(plan.items)


def test_one_bad_gpu_is_left_out_while_others_are_at_their_first_shot(campaign_of: Any, tmp_path: Path) -> None:
    """It fails at once, long before any of the others has made a shot."""
    world = World(iter(()), faults={"here/1": NO_DRIVER})
    render = FakeGang.render

    async def quick(gang: FakeGang, *arguments: Any) -> Rendered:
        if gang.hellos[0].place not in world.faults:
            await asyncio.sleep(600)
        return await render(gang, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeGang, "render", quick)
        summary, plan, error = supervise(campaign_of(tmp_path), world, ClusterSpec(), "cuda")
    assert not error
    assert len(summary.rendered) == len(plan.items)
    assert world.held == [("here", "1")]
    assert summary.left_out == [f"here, GPU 1: shots fail there in the same way: {NO_DRIVER}"]


def test_machines_that_fail_differently_are_left_out_one_by_one(campaign_of: Any, tmp_path: Path) -> None:
    world = World(iter(()), machines=("a", "b"), faults={"a": NO_DRIVER, "b": "OSError: no libcudnn.so"})
    summary, _, _ = supervise(campaign_of(tmp_path), world, ClusterSpec(gangs=4), "cuda")
    assert summary.exit_code == 3
    assert not summary.rendered


def test_an_unfit_gpu_is_left_out_and_the_rest_works(campaign_of: Any, tmp_path: Path) -> None:
    world = World(iter(()), unfit={"here": "2"})
    summary, plan, error = supervise(campaign_of(tmp_path), world, ClusterSpec(), "cuda")
    assert not error
    assert len(summary.rendered) == len(plan.items)
    assert world.held == [("here", "2")]
    assert summary.left_out == ["here, GPU 2: attention: wrong by 3e-01. Leave it out."]


@pytest.mark.parametrize("machines", [("here",), ("here", "there")])
def test_an_unfit_machine_ends_the_run_only_where_no_other_is(
    campaign_of: Any, tmp_path: Path, machines: tuple[str, ...]
) -> None:
    world = World(iter(()), machines=machines, unfit={"here": ""})
    summary, plan, error = supervise(campaign_of(tmp_path), world, ClusterSpec(), "cpu")
    assert not error
    if len(machines) == 1:
        assert summary.exit_code == 3
        assert summary.fault.startswith("no gang of 2 can form without what was left out: here: attention: wrong by")
        assert not summary.rendered
    else:
        assert len(summary.rendered) == len(plan.items)
        assert len(summary.left_out) == 1


def test_prompts_are_encoded_once_for_all_gangs(campaign_of: Any, tmp_path: Path) -> None:
    world = World(iter(()))
    summary, _, _ = supervise(campaign_of(tmp_path), world, ClusterSpec(gangs=4), "cuda")
    assert len(summary.rendered) == 13
    assert set(world.encoded.values()) == {1}
    assert len(world.encoded) == 5  # three prompts, the negative one, the reference pass's


def test_another_gang_encodes_where_the_first_died(campaign_of: Any, tmp_path: Path) -> None:
    world = World(iter(["died starting", "done", "died"]))
    summary, _, error = supervise(campaign_of(tmp_path), world, ClusterSpec(gangs=2))
    assert not error
    assert len(summary.rendered) == 13
    assert set(world.encoded.values()) == {1}


def test_a_warning_of_a_machine_is_shown_once(campaign_of: Any, tmp_path: Path) -> None:
    """Two gangs of two ranks, one of them started again after a death: each machine's line comes once."""
    line = "attention kernel flash does not work"
    ranks = [Hello(1, host, "gpu", "sdpa", "0", warnings=(line,)) for host in ("a", "b")]
    lines: list[str] = []

    class Warns(World):
        async def start(self, *args: Any) -> FakeGang:
            gang = await super().start(*args)
            gang.hellos = ranks[: len(gang.ranks)]
            return gang

    world = Warns(iter(["ok", "ok", "died"]))
    summary, _, _ = supervise(campaign_of(tmp_path), world, ClusterSpec(gangs=2, ulysses=2), say=lines.append)
    assert not summary.failed
    assert [line for line in lines if line.startswith("warning")] == [
        "warning: a: attention kernel flash does not work",
        "warning: b: attention kernel flash does not work",
    ]


# A shot is encoded while the gang renders the next one.


def seconds_of(campaign: Campaign, world: World) -> float:
    """Runs a campaign on one gang. Returns the virtual seconds that it took."""
    loops: list[asyncio.AbstractEventLoop] = []

    def say(line: str) -> None:
        loops[:] = [asyncio.get_running_loop()]

    summary, plan, _ = supervise(campaign, world, ClusterSpec(gangs=1), say=say)
    assert len(summary.rendered) == len(plan.items) == 13
    return loops[0].time()


@pytest.mark.parametrize(("encode_s", "most_decoded"), [(0.0, 1), (50.0, 1), (100.0, 2)])
def test_the_gang_waits_for_no_encoder_that_is_faster(
    campaign_of: Any, tmp_path: Path, encode_s: float, most_decoded: int
) -> None:
    """The last shot alone is waited for. A slower encoder makes the gang wait with one shot encoded and one ready."""
    world = World(iter(()), encode_s=encode_s)
    seconds = seconds_of(campaign_of(tmp_path), world)
    slower = max(60.0, encode_s)
    starting = seconds - (60 + 12 * slower + encode_s)
    assert 0 <= starting < 15, seconds
    assert world.most_decoded == most_decoded
    assert world.starts == 1


def test_an_encoder_that_fails_costs_the_next_shot_nothing(campaign_of: Any, tmp_path: Path) -> None:
    world = World(iter(["done", "done", "raised"]))  # of the start, of the first shot, and of its encoding
    lines: list[str] = []
    summary, plan, _ = supervise(campaign_of(tmp_path), world, ClusterSpec(gangs=1), say=lines.append)
    assert len(summary.rendered) == len(plan.items)
    assert summary.retries == 1
    assert world.starts == 1
    assert max(world.attempts.values()) == 2  # its latents were no real file, so it was rendered again


def test_a_rank_that_dies_loses_neither(campaign_of: Any, tmp_path: Path) -> None:
    """It dies while it encodes one shot, and the gang renders the next."""
    world = World(iter(["done", "done", "died"]))
    summary, plan, _ = supervise(campaign_of(tmp_path), world, ClusterSpec(gangs=1))
    assert sorted(summary.rendered) == sorted(item.shot.name for item in plan.items)
    assert summary.retries == 2
    assert world.starts == 2


def test_the_next_face_is_found_ahead(campaign_of: Any, tmp_path: Path) -> None:
    """Once for each change of the subject: the gang makes all shots of b, then those of a."""
    world = World(iter(()))
    supervise(campaign_of(tmp_path), world, ClusterSpec(gangs=1))
    assert world.ahead == ["a/walk-t01"]


def test_experts_are_moved_once_for_each_shot(campaign_of: Any, tmp_path: Path) -> None:
    """Two shots go through the first expert, then both through the second. The last of 13 goes alone."""
    world = World(iter(()), one_expert=True)
    summary, plan, _ = supervise(campaign_of(tmp_path), world, ClusterSpec(gangs=1))
    assert sorted(summary.rendered) == sorted(item.shot.name for item in plan.items)
    experts = [phase for _, phase in world.phases]
    assert experts == ["first", "first", "rest", "rest"] * 6 + ["first", "rest"]
    assert [name for name, phase in world.phases if phase == "rest"] == [n for n, p in world.phases if p == "first"]
    assert max(world.attempts.values()) == 2  # calls of the gang
    records = [json.loads(line) for line in Output(campaign_of(tmp_path).output).journal.read_text().splitlines()]
    assert sum(record["event"] == "attempt" for record in records) == 13


def test_a_gang_that_dies_between_two_experts(campaign_of: Any, tmp_path: Path) -> None:
    """It dies with two shots half made. Both are made by the next gang."""
    world = World(iter(["done", "done", "done", "died"]), one_expert=True)
    summary, plan, _ = supervise(campaign_of(tmp_path), world, ClusterSpec(gangs=1))
    assert sorted(summary.rendered) == sorted(item.shot.name for item in plan.items)
    assert summary.retries == 1
    assert world.starts == 2


def test_what_ranks_know_of_a_subject(campaign_of: Any, tmp_path: Path) -> None:
    """Where its crops are shown, in which sizes, for whom; the journal keeps whose each attempt was."""
    campaign = campaign_of(tmp_path)
    subject = campaign.shots[0].subject.id
    campaign = replace(campaign, faces="private", reference_sizes={subject: frozenset({256, 384})})
    crops_of: dict[str, Crops] = {}

    class Told(FakeGang):
        async def finish(self, order: RenderOrder) -> Rendered:
            crops_of[order.shot.subject.id] = order.crops
            return replace(await super().finish(order), warnings=("the file system decides",))

    class Ranks(World):
        async def start(self, *args: Any) -> FakeGang:
            gang = await super().start(*args)
            gang.__class__ = Told
            return gang

    lines: list[str] = []
    supervise(campaign, Ranks(iter([])), ClusterSpec(), say=lines.append)
    expected = Crops(campaign.output, subject, crops_source(campaign, campaign.shots[0].subject, {}), private=True)
    assert crops_of[subject] == replace(expected, sizes=frozenset({256, 384}))
    assert len({crops.source for crops in crops_of.values()}) == len(crops_of) == 2
    assert lines.count("warning: the file system decides") == 1  # not for every shot and gang
    records = [json.loads(line) for line in Output(campaign.output).journal.read_text().splitlines()]
    attempts = {record["name"]: record["subject"] for record in records if record["event"] == "attempt"}
    assert attempts == {shot.name: shot.subject.id for shot in campaign.shots}


@pytest.mark.parametrize(("device", "kind"), [("cpu", "cpu"), ("NVIDIA H200", "cuda")])
def test_a_cached_subject_is_of_the_device_that_the_ranks_run_on(
    campaign_of: Any, tmp_path: Path, device: str, kind: str
) -> None:
    campaign = campaign_of(tmp_path)
    keys: set[str] = set()

    class Keys(FakeGang):
        async def render(self, order: RenderOrder, prepared: Callable[[int], None]) -> bool:
            keys.add(order.subject_key)
            return await super().render(order, prepared)

    class Ranks(World):
        async def start(self, *args: Any) -> FakeGang:
            gang = await super().start(*args)
            gang.__class__ = Keys
            gang.hellos = [Hello(1, "here", device, "sdpa", "0")] * len(gang.ranks)
            return gang

    supervise(campaign, Ranks(iter([])), ClusterSpec())
    assert keys == {subject_key(campaign, shot, {}, kind) for shot in campaign.shots}
    assert len(keys) == 2


def test_ranks_get_the_precision_of_the_vae(campaign_of: Any, tmp_path: Path) -> None:
    campaign = campaign_of(tmp_path)
    model = campaign.pipeline.model.model_copy(update={"vae_dtype": "tf32"})
    dtypes: set[str] = set()

    class Loads(World):
        async def start(self, size: int, load: RankConfig, *args: Any) -> FakeGang:
            dtypes.add(load.vae_dtype)
            return await super().start(size, load, *args)

    pipeline = campaign.pipeline.model_copy(update={"model": model})
    supervise(replace(campaign, pipeline=pipeline), Loads(iter([])), ClusterSpec())
    assert dtypes == {"tf32"}


def test_a_gpu_that_worked_once_does_not_burn_the_rest(campaign_of: Any, tmp_path: Path) -> None:
    """It fails within a second, again and again, while the others are at work."""
    world, begun, render = World(iter(())), Counter[str](), FakeGang.render

    async def breaking(gang: FakeGang, *arguments: Any) -> Rendered:
        place = gang.hellos[0].place
        begun[place] += 1
        if place == "here/1" and begun[place] > 1:
            raise gang._failure("AcceleratorError: CUDA error: uncorrectable ECC error", "raised")
        if begun[place] > 1:
            await asyncio.sleep(300)
        return await render(gang, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeGang, "render", breaking)
        summary, plan, error = supervise(campaign_of(tmp_path), world, ClusterSpec(), "cuda")
    assert not error
    assert len(summary.rendered) == len(plan.items)


def test_a_gpu_on_which_weights_cannot_be_loaded_is_left_out(campaign_of: Any, tmp_path: Path) -> None:
    class World1(World):
        def _check_start(self, machine: str, gpus: list[str]) -> None:
            if "1" in gpus:
                error = RenderError("AcceleratorError: CUDA error: uncorrectable ECC error", "raised")
                error.place, error.host = f"{machine}/1", machine
                raise error

    world = World1(iter(()))
    summary, plan, error = supervise(campaign_of(tmp_path), world, ClusterSpec(), "cuda")
    assert not error
    assert len(summary.rendered) == len(plan.items)
    assert world.held == [("here", "1")]


def test_a_bad_subject_that_comes_first_fails_alone(campaign_of: Any, tmp_path: Path) -> None:
    render = FakeGang.render

    async def bad(gang: FakeGang, order: RenderOrder, resuming: Callable[[int], None]) -> bool:
        if order.shot.subject.id == "b":
            raise gang._failure("error: OpenCV resize.cpp: assertion failed", "raised")
        return await render(gang, order, resuming)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeGang, "render", bad)
        for gangs, device in ((1, "cpu"), (4, "cuda")):
            campaign = campaign_of(tmp_path / device)
            summary, _, error = supervise(campaign, World(iter(())), ClusterSpec(gangs=gangs), device)
            assert not error
            assert not summary.fault
            assert not summary.left_out
            assert {name.split("/")[0] for name in summary.rendered} == {"a"}
            assert {name.split("/")[0] for name, _ in summary.failed} == {"b"}


def test_what_the_driver_cannot_write_is_no_gpu_s_fault(campaign_of: Any, tmp_path: Path) -> None:
    tmp_path.joinpath("a").write_text("a file where the subject's folder goes")
    summary, _, error = supervise(campaign_of(tmp_path), World(iter(())), ClusterSpec(), "cuda")
    assert not error
    assert not summary.left_out
    assert {name.split("/")[0] for name in summary.rendered} == {"b"}


def test_embeddings_are_waited_for_and_not_the_gang_that_makes_them(campaign_of: Any, tmp_path: Path) -> None:
    """The first gang encodes, and then takes an hour to load its weights."""
    world, first = World(iter(())), itertools.count()

    async def start(*arguments: Any) -> FakeGang:
        if next(first) == 0:
            world.ranks += 1
            gang = FakeGang(world, arguments[1], arguments[2], "here", ["3"], "cuda")
            world.on["here"].add("3")
            await asyncio.sleep(3600)
            return gang
        return await World.start(world, *arguments)

    world.start = start  # type: ignore[method-assign]
    ends: list[float] = []
    summary, _, _ = supervise(
        campaign_of(tmp_path), world, ClusterSpec(), "cuda",
        say=lambda line: ends.append(asyncio.get_running_loop().time()) if "rendered" in line else None,
    )  # fmt: skip
    assert len(summary.rendered) == 13
    assert ends[0] < 120


def test_ranks_that_die_at_first_do_not_cost_the_only_machine(campaign_of: Any, tmp_path: Path) -> None:
    """Two gangs on one machine of CPUs; the first shots of two subjects die in one of them."""
    render, died = FakeGang.render, itertools.count()

    async def dying(gang: FakeGang, *arguments: Any) -> Rendered:
        if gang.gpus == ["0", "1"] and next(died) < 9:
            await asyncio.sleep(5)
            raise gang._failure("ActorDiedError: The actor died unexpectedly.", "died")
        await asyncio.sleep(600)
        return await render(gang, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeGang, "render", dying)
        summary, plan, error = supervise(campaign_of(tmp_path), World(iter(())), ClusterSpec(gangs=2))
    assert not error
    assert not summary.fault
    assert not summary.left_out
    assert len(summary.rendered) == len(plan.items)


def test_a_retry_does_not_wait_for_another_machine_than_the_only_one(campaign_of: Any, tmp_path: Path) -> None:
    """Both gangs die at once. While neither has ranks, each seems to be elsewhere for the other one."""
    excluded: list[frozenset[str]] = []
    world = World(iter(()))
    world.encode_s = 1.0
    start, render, died = world.start, FakeGang.render, set()

    async def noting(size: int, load: RankConfig, prompts: list[str], options: StartOptions, *rest: Any) -> FakeGang:
        excluded.append(options.excluded)
        return await start(size, load, prompts, options, *rest)

    async def dying(gang: FakeGang, order: RenderOrder, prepared: Any) -> bool:
        if len(world.attempts) >= 8 and order.shot.name not in died:
            died.add(order.shot.name)
            await asyncio.sleep(60)
            raise gang._failure("ActorDiedError: The actor died unexpectedly.", "died")
        return await render(gang, order, prepared)

    world.start = noting  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeGang, "render", dying)
        summary, plan, error = supervise(campaign_of(tmp_path), world, ClusterSpec(gangs=2))
    assert not error
    assert len(died) >= 2
    assert len(summary.rendered) == len(plan.items)
    assert excluded == [frozenset()] * (2 + len(died))


@pytest.mark.parametrize("gangs", [1, 2])
def test_the_counter_is_of_finished_shots(campaign_of: Any, tmp_path: Path, gangs: int) -> None:
    """Shots of another priority, retries, failures and a second gang do not make it go back."""
    lines: list[str] = []
    world = World(iter(["done", "done", "died", *["done"] * 5, *["subject"] * 3, "raised"]))
    summary, plan, _ = supervise(campaign_of(tmp_path), world, ClusterSpec(gangs=gangs), say=lines.append)
    total = len(plan.items)
    shown = [re.match(r"\[(\d+)/(\d+)\] ", line) for line in lines]
    counts = [(int(found[1]), int(found[2])) for found in shown if found]
    assert {of for _, of in counts} == {total}
    finished = [count for count, _ in counts]
    assert finished == sorted(finished)
    assert summary.retries
    assert summary.failed
    ends = [line for line in lines if " rendered in " in line]
    assert len(ends) == len(summary.rendered)
    assert len({line.partition(" ")[0] for line in ends}) == len(ends)
    assert finished[0] <= 1
    assert summary.finished == total
    assert finished[-1] == total or not ends[-1].startswith(f"[{total}/")


def test_a_resumed_shot_says_where_it_resumes(campaign_of: Any, tmp_path: Path) -> None:
    lines: list[str] = []
    world = World(iter(()), partial={"a/walk-t01": 1, "b/talk-t02": 4})
    supervise(campaign_of(tmp_path), world, ClusterSpec(), say=lines.append)
    found = sorted(line.partition("] ")[2] for line in lines if "resuming" in line)
    assert found == ["a/walk-t01: resuming at step 2 of 4", "b/talk-t02: resuming after its last step"]


@pytest.mark.parametrize("shot", [0, 5, 12])
def test_an_unexpected_error_beside_the_next_shot_ends_the_run(
    campaign_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shot: int
) -> None:
    """It is a bug of this package. The run says so instead of leaving the shot without a word."""
    numbers = itertools.count()
    finish = FakeGang._finish

    async def broken(gang: FakeGang, order: RenderOrder) -> Rendered:
        if next(numbers) == shot:
            raise ZeroDivisionError("a bug")
        return await finish(gang, order)

    monkeypatch.setattr(FakeGang, "_finish", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run_with(campaign_of, tmp_path, [])
