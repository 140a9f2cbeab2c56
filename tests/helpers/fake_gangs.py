"""Gangs with given failures, in virtual time: a run without Ray, ranks or weights."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from lynx_parallel.engine.placement import Machine, NoRoom, StartOptions, UnfitRank
from lynx_parallel.engine.run import Run
from lynx_parallel.engine.summary import Summary
from lynx_parallel.engine.supervisor import Supervisor
from lynx_parallel.errors import LynxError, RenderError, SubjectError, WithheldError
from lynx_parallel.inputs.cluster import ClusterSpec
from lynx_parallel.inputs.layout import Layout
from lynx_parallel.inputs.manifest import Campaign, Shot
from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import Journal
from lynx_parallel.output.scores import IdentityScore, ScoreState
from lynx_parallel.plan.auditions import takes_in_auditions
from lynx_parallel.plan.layout_choice import LayoutChoice
from lynx_parallel.plan.parts import Part, plan_parts
from lynx_parallel.plan.plan import TODO, Plan
from lynx_parallel.plan.weights import find_weights
from lynx_parallel.rank.messages import Check, Hello, RankConfig, Rendered, RenderOrder

OUTCOMES = ["done", "died", "hung", "raised", "memory", "disk", "subject", "no room", "died starting"]


RANKS = 4


MANIFEST = """\
version: 1
pipeline: demo-tiny
output: {output}
subjects:
  a: {{image: faces/astronaut.jpg, landmarks: [[1, 1], [9, 1], [5, 5], [2, 8], [8, 8]], embedding: a.npy}}
  b: {{image: faces/astronaut.jpg, landmarks: [[1, 1], [8, 1], [5, 5], [2, 8], [8, 8]], embedding: b.npy}}
prompts: {{walk: A walk., talk: A talk., look: A look.}}
shots:
- {{subject: "*", prompt: "*", takes: 2}}
- {{subject: b, prompt: walk, seeds: [7], priority: 5}}
"""


class VirtualTime(asyncio.SelectorEventLoop):
    """A loop that never waits: its clock jumps to what comes next."""

    def __init__(self) -> None:
        super().__init__(_Jump(self))
        self.now = 0.0

    def time(self) -> float:
        return self.now


class _Jump(selectors.SelectSelector):
    def __init__(self, loop: VirtualTime):
        super().__init__()
        self.loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None or self.get_map(), "blocked for ever"
        self.loop.now += max(timeout or 0.0, 0.0)
        assert self.loop.now < 100_000, "the run does not end"
        return super().select(0)


@dataclass
class World:
    """Outcomes to come, and what must hold of all gangs together at any time.

    Attributes:
        machines: names; each holds an equal part of the ranks.
        faults: what every shot fails with, by place: a machine, or one of its GPUs.
        unfit: GPUs that fail their self-check, by machine; empty for the machine itself.
        held: GPUs that were taken out of the run.
        partial: steps that the resume states have done, by shot.
        ahead: shots whose face was looked for ahead.
        encode_s: seconds that an encoding takes; a rendering takes 60.
        one_expert: whether gangs hold one of two experts at a time.
        similarity: of a video to its subject, by the seed; None without a face.
        unsafe: seeds whose videos the safety checker withholds.
        steps: denoising steps that were made, by shot and seed.
        phases: shots in the order of their renderings: through the first expert, or the rest.
        most_decoded: most shots of one gang that were decoded and not yet encoded.
        on: GPUs in use, by machine; on the CPU, they only count the ranks.
    """

    outcomes: Iterator[str]
    machines: tuple[str, ...] = ("here",)
    faults: dict[str, str] = field(default_factory=dict)
    unfit: dict[str, str] = field(default_factory=dict)
    held: list[tuple[str, str]] = field(default_factory=list)
    on: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    partial: dict[str, int] = field(default_factory=dict)
    ranks: int = 0
    at_work: set[str] = field(default_factory=set)
    attempts: Counter[str] = field(default_factory=Counter)
    made: Counter[str] = field(default_factory=Counter)
    encoded: Counter[str] = field(default_factory=Counter)
    ahead: list[str] = field(default_factory=list)
    encode_s: float = 50.0
    most_decoded: int = 0
    starts: int = 0
    one_expert: bool = False
    similarity: Callable[[int], float | None] = lambda seed: 1.0
    unsafe: frozenset[int] = frozenset()
    steps: Counter[tuple[str, int]] = field(default_factory=Counter)
    phases: list[tuple[str, str]] = field(default_factory=list)

    def next(self) -> str:
        return next(self.outcomes, "done")

    async def start(
        self,
        size: int,
        load: RankConfig,
        prompts: list[str],
        options: StartOptions,
        output: Output,
        needed: Sequence[Path],
    ) -> FakeGang:
        assert all(path.exists() for path in needed)
        self.starts += 1
        if self.ranks + size > RANKS:
            raise AssertionError(f"{self.ranks} ranks live, {size} more started")
        each = RANKS // len(self.machines)
        usable = [name for name in self.machines if name not in options.excluded]
        machine = next((name for name in usable if len(self.on[name]) + size <= each), None)
        if machine is None:
            raise NoRoom("no room")
        gpus = [str(n) for n in range(each) if str(n) not in self.on[machine]][:size]
        self.on[machine].update(gpus)
        try:
            await asyncio.sleep(5)
            self._check_start(machine, gpus)
        except BaseException:
            self.on[machine].difference_update(gpus)
            raise
        self.ranks += size
        return FakeGang(self, load, prompts, machine, gpus, options.device)

    def _check_start(self, machine: str, gpus: list[str]) -> None:
        match self.next():
            case "no room":
                raise NoRoom("no room")
            case "died starting":
                raise RenderError("a rank died.", "died")
        if self.unfit.get(machine) in ["", *gpus]:
            hello = Hello(1, machine, "H100", "flash3", "0", machine, self.unfit[machine])
            raise UnfitRank(hello, Check("attention", False, 0.1, "wrong by 3e-01", "Leave it out."))

    async def hold(self, machine: str, gpu: str) -> object:
        assert gpu not in self.on[machine]
        self.on[machine].add(gpu)
        self.held.append((machine, gpu))
        return object()


class FakeGang:
    """As ``Gang``, without ranks."""

    def __init__(self, world: World, load: RankConfig, prompts: list[str], machine: str, gpus: list[str], device: str):
        self.world, self.load, self.dead = world, load, False
        self.one_expert = world.one_expert
        self.encoder, self.decoded = asyncio.Semaphore(1), 0
        self._encode(prompts)
        self.layout: Layout | None = None
        self.ranks = [None] * len(gpus)
        self.gpus = gpus
        self.machine = machine
        named = gpus if device == "cuda" else [""] * len(gpus)
        self.hellos = [Hello(1, machine, device, "sdpa", "0", machine, gpu) for gpu in named]
        self.breaks = ()

    def kill(self) -> None:
        self.dead = True
        self.world.ranks -= len(self.ranks)
        self.world.on[self.machine].difference_update(self.gpus)

    def _failure(self, reason: str, kind: str) -> RenderError:
        error = RenderError(reason, kind)
        error.place, error.host = self.hellos[0].place, self.machine
        return error

    def _encode(self, prompts: list[str]) -> None:
        files = self.load.prompts
        assert files is not None
        self.world.encoded.update(prompts)
        for prompt in prompts:
            files.folder.mkdir(parents=True, exist_ok=True)
            files.path(prompt).touch()

    def prepare_ahead(self, shot: Shot, subject_key: str) -> None:
        self.world.ahead.append(shot.name)

    async def encode_prompts(self, prompts: list[str]) -> None:
        await asyncio.sleep(5)
        match self.world.next():
            case "died" | "memory" as outcome:
                raise RenderError(outcome, outcome)
        self._encode(prompts)

    async def stop(self) -> None:
        """A rank that does not answer."""
        await asyncio.sleep(1000)

    async def form(self, layout: Layout) -> None:
        assert layout.size <= len(self.ranks)
        self.layout = layout

    async def render(self, order: RenderOrder, prepared: Callable[[int], None]) -> bool:
        world, shot, parts = self.world, order.shot, order.parts
        place = f"{order.crops.output}/{shot.name}"
        prepared(world.partial.get(shot.name, 0))
        assert place not in world.at_work, "two gangs at one shot"
        files = self.load.prompts
        assert files is not None
        assert not files.missing([shot.text, shot.sampling.negative_prompt]), "a prompt that was not encoded"
        world.at_work.add(place)
        world.attempts[shot.name] += 1
        order.logs.mkdir(parents=True, exist_ok=self.one_expert)
        try:
            await asyncio.sleep(60)
            if self.dead:
                raise self._failure("died", "died")
            if fault := world.faults.get(self.machine, world.faults.get(self.hellos[0].place)):
                raise self._failure(fault, "raised")
            match outcome := world.next():
                case "subject":
                    raise SubjectError("no face")
                case "disk":
                    raise OSError(28, "No space left on device", "somewhere")
                case "died" | "hung" | "raised" | "memory":
                    for part in parts.values():
                        part.parent.mkdir(parents=True, exist_ok=True)
                        part.write_text("half")
                    raise self._failure(outcome, outcome)
        finally:
            world.at_work.remove(place)
        world.phases.append((shot.name, "first" if order.first_expert else "rest"))
        if order.first_expert:
            return False
        key, end = (shot.name, shot.seed), order.until or shot.sampling.num_inference_steps
        world.steps[key] += end - world.partial.get(order.digest, 0)
        world.partial[order.digest] = end
        if order.until is not None:
            return True
        parts["latents"].parent.mkdir(parents=True, exist_ok=True)
        parts["latents"].write_text("whole")
        return True

    async def finish(self, order: RenderOrder) -> Rendered:
        """One after another, as a rank's thread does."""
        self.decoded += 1
        self.world.most_decoded = max(self.world.most_decoded, self.decoded)
        try:
            async with self.encoder:
                return await self._finish(order)
        finally:
            self.decoded -= 1

    async def _finish(self, order: RenderOrder) -> Rendered:
        world, shot, parts = self.world, order.shot, order.parts
        place = f"{order.crops.output}/{shot.name}"
        assert place not in world.at_work, "a shot is rendered again while it is encoded"
        world.at_work.add(place)
        try:
            await asyncio.sleep(world.encode_s)
            if self.dead:
                raise self._failure("died", "died")
            match outcome := world.next():
                case "died" | "hung" | "raised":
                    parts["video"].write_text("half")
                    raise self._failure(outcome, outcome)
        finally:
            world.at_work.remove(place)
        if shot.seed in world.unsafe:
            raise WithheldError("withheld by the safety checker: nsfw 0.99 in frame 1, threshold 0.85")
        parts["video"].write_text("whole")
        if order.until is None:
            world.made[order.digest] += 1
        score = None if order.score is None else score_of(world.similarity(shot.seed), order.score.recognizer.name)
        outputs = {kind: {"size": 5, "sha256": "0" * 64} for kind in parts if kind != "poster"}
        return Rendered(outputs, {}, {}, score=score, steps=order.until or 0)


def score_of(similarity: float | None, recognizer: str = "dlib") -> IdentityScore:
    """Returns the score of a video whose frames all have this similarity."""
    state: ScoreState = "no face" if similarity is None else "scored"
    return IdentityScore(recognizer, "a scale", 0.4, state, similarity, similarity, float(similarity is not None), 0.0)


def supervise(
    campaign: Campaign,
    world: World,
    cluster: ClusterSpec,
    device: str = "cpu",
    stop_after: float | None = None,
    say: Callable[[str], object] = str,
) -> tuple[Summary, Plan, str]:
    """One run; how it ended, what was planned, and what ended it as a whole.

    Args:
        stop_after: seconds after which it is stopped; it must end within 12.
        say: takes each line of progress.
    """
    weights = find_weights(campaign.pipeline.model)
    output = Output(campaign.output)
    plan = plan_parts(campaign, [Part(campaign, weights)], today=date.today())
    todo = plan.of(*TODO)
    journal = Journal(output.journal)
    layouts = LayoutChoice(cluster, weights)
    run = Run(
        campaign, weights, None, {}, cluster, layouts, output, journal, Summary(), say,  # type: ignore[arg-type]
        takes=takes_in_auditions(plan.items),
    )  # fmt: skip
    error = ""

    async def go() -> None:
        machines = tuple(Machine(name, "127.0.0.1", RANKS // len(world.machines)) for name in world.machines)
        options = StartOptions(device, True, machines)
        supervisor = Supervisor([(run, todo)], options, partial(world.start), world.hold)  # type: ignore[arg-type]
        work = asyncio.ensure_future(supervisor.make_all())
        if stop_after is not None:
            await asyncio.sleep(stop_after)
            run.summary.stopped_by = 15
            await supervisor.save_and_stop(work)
        with contextlib.suppress(asyncio.CancelledError):
            await work
        assert stop_after is None or asyncio.get_running_loop().time() < stop_after + 12

    with asyncio.Runner(loop_factory=VirtualTime) as runner, mock.patch("os.fsync"):  # the disk is not the point
        try:
            if todo:
                runner.run(go())
        except LynxError as raised:
            error = str(raised)
    journal.close()
    return run.summary, plan, error
