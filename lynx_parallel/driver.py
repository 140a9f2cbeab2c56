"""The driver: plan → gang → shots, one by one; the only process that publishes files and writes the journal.

Decisions lie in ``plan``; here they are carried out.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import lynx_parallel
from lynx_parallel.artifacts import part_path, shown
from lynx_parallel.errors import LynxError, Stopped, SubjectError
from lynx_parallel.gang.policy import GiveUp, Kind, Retry, decide
from lynx_parallel.gang.policy import Plan as MemoryPlan
from lynx_parallel.gang.work import Slot, Work, next_work
from lynx_parallel.identity import identify, subject_key
from lynx_parallel.layouts import Layouts
from lynx_parallel.ledger import Journal, Output, now
from lynx_parallel.lock import Lock
from lynx_parallel.parallel.layout import Layout
from lynx_parallel.plan import Item, Plan
from lynx_parallel.sidecar import make_sidecar
from lynx_parallel.signals import SIGNALS, deferred_signals, hold
from lynx_parallel.spec.cluster import ClusterSpec
from lynx_parallel.spec.manifest import Campaign
from lynx_parallel.weights import FaceFiles, WeightFiles

if TYPE_CHECKING:
    from lynx_parallel.gang.gang import Gang
    from lynx_parallel.gang.rank import Load, Rendered

PROGRESS_EVERY_S = 15.0
STOP_WITHIN_S = 8.0
"""After a first signal, so long for the step at hand to end and its state to be saved."""


@dataclass
class Summary:
    """How a run ended.

    Attributes:
        failed, blocked: (name, reason).
        retries: attempts that failed and were made again.
        conditioning: how often subjects, texts, identities and references were made, and how often found kept.
    """

    rendered: list[str] = field(default_factory=list)
    encoded: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    blocked: list[tuple[str, str]] = field(default_factory=list)
    retries: int = 0
    conditioning: Counter[str] = field(default_factory=Counter)
    stopped_by: int | None = None
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        if self.stopped_by == signal.SIGUSR1:
            return Stopped.exit_code
        if self.stopped_by is not None:
            return 128 + self.stopped_by
        return 1 if self.failed or self.blocked else 0


class Driver:
    """Carries out one plan.

    Args:
        digests: of the weights, by ``weights.weight_digests``.
        replan: compares the campaign with its output folder as it is now.
        say: takes each line of progress.
    """

    def __init__(
        self,
        campaign: Campaign,
        weights: WeightFiles,
        face: FaceFiles | None,
        digests: Mapping[str, str],
        replan: Callable[[], Plan],
        cluster: ClusterSpec,
        say: Callable[[str], None],
    ):
        self.campaign = campaign
        self.weights = weights
        self.face = face
        self.digests = digests
        self.replan = replan
        self.cluster = cluster
        self.say = say
        self.output = Output(campaign.output)
        self.summary = Summary()
        self._quarantined: dict[str, str] = {}
        self._memory = MemoryPlan(cluster.shard_weights, cluster.tiled_decode)
        self._slots: list[Slot] = []
        self._queue: list[Work] = []
        self._running = 0
        self._renders = False
        self._stopping: asyncio.Task[None] | None = None

    def run(self) -> Summary:
        """Renders what the plan says. SIGINT and SIGTERM end it early, every process of ours with it.

        Raises:
            ClusterError: no Ray, no room, or another driver in this output folder.
        """
        began = time.monotonic()
        plan = self.replan()
        self.say(f"{self.campaign.path.name}: {plan}")
        for name in plan.orphans:
            self.say(f"{name}: not in the manifest any more; left as it is")
        if todo := plan.of("render", "encode"):
            layouts = Layouts(self.cluster, self.weights)
            layouts.check(item.shot for item in todo)  # before any work
            with self._locked() as journal:
                plan = self.replan()  # another driver may have been at work until the lock was ours
                if todo := plan.of("render", "encode"):
                    self._run(todo, layouts, journal)
        self.summary.skipped = [item.shot.name for item in plan.of("done")]
        self.summary.blocked = [(item.shot.name, item.reason) for item in plan.of("blocked")]
        self.summary.seconds = time.monotonic() - began
        return self.summary

    @contextlib.contextmanager
    def _locked(self) -> Iterator[Journal]:
        with Lock(self.output.private / "lock"):
            self.output.sweep()
            stamp = now()
            self.output.snapshot(self.campaign.path, stamp.replace(":", ""))
            journal = Journal(self.output.private / "journal.jsonl")
            journal.append("run_started", manifest=str(self.campaign.path), version=lynx_parallel.__version__)
            try:
                yield journal
            finally:
                summary = self.summary
                journal.append(
                    "run_ended", rendered=len(summary.rendered), encoded=len(summary.encoded),
                    failed=len(summary.failed), signal=summary.stopped_by,
                )  # fmt: skip
                journal.close()

    def _run(self, todo: list[Item], layouts: Layouts, journal: Journal) -> None:
        from lynx_parallel.gang.cluster import ray_cluster

        try:
            with deferred_signals() as pending, ray_cluster(self.cluster.address) as local:
                asyncio.run(self._until_stopped(todo, layouts, journal, local, pending))
                hold(pending)  # the loop has put the default handlers back, and Ray is yet to end
        except SystemExit as end:
            if end.code != signal.SIGTERM:
                raise
            # ray.init answers SIGTERM with a handler of its own, which does this.
            self.summary.stopped_by = int(signal.SIGTERM)

    async def _until_stopped(
        self, todo: list[Item], layouts: Layouts, journal: Journal, local: bool, pending: list[int]
    ) -> None:
        """Runs the shots; a signal cancels them. Handlers are set here since ``ray.init`` sets its own."""
        work = asyncio.ensure_future(self._render_all(todo, layouts, journal, local))
        loop = asyncio.get_running_loop()

        def stop(number: int) -> None:
            if self.summary.stopped_by is not None:
                work.cancel()  # asked twice: at once
                return
            self.summary.stopped_by = number
            self.say(f"{signal.Signals(number).name}: stopping; what is done stays, run again to go on")
            self._stopping = loop.create_task(self._put_aside(work))

        for number in SIGNALS:
            loop.add_signal_handler(number, stop, number)
        if self.cluster.stop_after is not None:
            loop.call_later(self.cluster.stop_after, stop, int(signal.SIGUSR1))
        for number in pending:
            stop(number)
        with contextlib.suppress(asyncio.CancelledError):
            await work

    async def _put_aside(self, work: asyncio.Future[None]) -> None:
        """Lets the shots at hand save their states, for a while."""
        with contextlib.suppress(LynxError, TimeoutError):
            gangs = [slot.gang for slot in self._slots if slot.gang is not None]
            await asyncio.wait_for(asyncio.gather(*(gang.stop() for gang in gangs)), STOP_WITHIN_S)
            if gangs:
                await asyncio.wait({work}, timeout=STOP_WITHIN_S)
        work.cancel()

    async def _render_all(self, todo: list[Item], layouts: Layouts, journal: Journal, local: bool) -> None:
        device, available = _available(self.cluster.device)
        planned = layouts.plan([item.shot for item in todo], device, available)
        size = max(layout.size for layout in planned)
        self._renders = any(item.action == "render" for item in todo)  # a retry may come to any gang
        gangs = layouts.gangs(size, device, available, len(todo))
        self._queue = [
            Work(item, layout, f"[{number}/{len(todo)}]")
            for number, (item, layout) in enumerate(zip(todo, planned, strict=True), start=1)
        ]
        self._slots = [Slot() for _ in range(gangs)]
        ranks = f"{size} rank{'s' * (size > 1)}"
        self.say(f"starting {ranks} on {device}" if gangs == 1 else f"starting {gangs} gangs of {ranks} on {device}")
        servers = [
            asyncio.ensure_future(self._serve(slot, size, gangs, device, local, journal)) for slot in self._slots
        ]
        try:
            reasons = await asyncio.gather(*servers)
        finally:
            for server in servers:
                server.cancel()
            for slot in self._slots:
                slot.end()
        if self.summary.stopped_by is None:
            for left in self._queue:
                self._fail(left.item, next(filter(None, reasons), "not tried"), journal)

    async def _serve(self, slot: Slot, size: int, gangs: int, device: str, local: bool, journal: Journal) -> str | None:
        """Makes one shot after the other on one gang; why it ended before the queue did, if so.

        Raises:
            LynxError: no gang could be started, and nothing was done yet: the whole run is at fault.
        """
        while (self._queue or self._running) and self.summary.stopped_by is None:
            if len(self.summary.failed) >= self.cluster.max_failures:
                return f"not tried: {len(self.summary.failed)} shots failed"
            taken = {other.subject for other in self._slots if other is not slot}
            work = next_work(self._queue, slot, taken, time.monotonic())
            if work is None:  # all that is left is running elsewhere, or waits for its retry
                await asyncio.sleep(0.1)
                continue
            self._queue.remove(work)
            if reason := self._quarantined.get(work.item.shot.subject.id):
                self._fail(work.item, reason, journal)
                continue
            self._running += 1
            try:
                slot.subject = work.item.shot.subject.id
                if error := await self._start(slot, work, size, gangs, device, local):
                    self._queue.insert(0, work)
                    return f"no ranks could be started again: {error}"
                if retry := await self._attempt(slot, work, journal):
                    work.not_before = time.monotonic() + retry.delay_s
                    self._queue.append(work)
            finally:
                self._running -= 1
        return None

    async def _start(self, slot: Slot, work: Work, size: int, gangs: int, device: str, local: bool) -> LynxError | None:
        """Starts a slot's gang where there is none; what came in the way, if other work was or is being done."""
        from lynx_parallel.gang.gang import Gang

        if slot.gang is not None:
            return None
        left = [work, *self._queue]
        load, prompts = self._load([work.item for work in left if work.item.action == "render"])
        try:
            slot.gang = await Gang.start(size, load, prompts, device=device, local=local, gangs=gangs)
        except LynxError as error:
            summary = self.summary
            if not (summary.rendered or summary.encoded or summary.failed or summary.retries):
                raise
            return error
        return None

    def _load(self, renders: list[Item]) -> tuple[Load, list[str]]:
        """What ranks load for these shots, and the prompts to encode first."""
        from lynx_parallel.gang.rank import Load
        from lynx_parallel.pipeline import REFERENCE_PROMPT

        load = Load(
            self.weights, self.campaign.pipeline.model.dtype, denoise=self._renders,
            shard=self._memory.shard, attention=self.cluster.attention,
            tiled_decode=self._memory.tiled_decode, face=self.face,
        )  # fmt: skip
        texts = [text for item in renders for text in (item.shot.text, item.shot.sampling.negative_prompt)]
        return load, list(dict.fromkeys([*texts, REFERENCE_PROMPT])) if renders else []

    async def _attempt(self, slot: Slot, work: Work, journal: Journal) -> Retry | None:
        """Tries one shot once; what to do where that failed and it is to be tried again."""
        gang = slot.gang
        assert gang is not None
        item, name = work.item, work.item.shot.name
        logs = self.output.logs(name, attempt := _next_attempt(self.output, name))
        began = time.monotonic()
        progress = asyncio.ensure_future(self._tell_progress(gang, f"{work.label} {name}"))
        try:
            journal.append("attempt", name=name, attempt=attempt, action=item.action, latents=item.identity.latents)
            made, kinds = await self._make(gang, work.layout, item, logs)
            if identify(self.campaign, item.shot, self.digests) != item.identity:
                raise SubjectError("its picture or embedding changed while it was rendered; run again")
            self._publish(item, gang, made, kinds, attempt, time.monotonic() - began)
        except Stopped as error:
            self.say(f"{work.label} {name}: {error}")
            journal.append("stopped", name=name, attempt=attempt, reason=str(error))
            slot.end()
            return None
        except (LynxError, OSError) as error:
            return self._after_failure(slot, work, error, logs, attempt, journal)
        finally:
            progress.cancel()
        self._done(work, made, attempt, time.monotonic() - began, journal)
        return None

    def _after_failure(
        self, slot: Slot, work: Work, error: LynxError | OSError, logs: Path, attempt: int, journal: Journal
    ) -> Retry | None:
        """Has the policy decide, and does what it says."""
        item = work.item
        kind: Kind = "subject" if isinstance(error, SubjectError) else getattr(error, "kind", "raised")
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        work.history.append(kind)
        if kind != "subject":
            reason = f"{reason} (logs: {shown(logs)})"
            slot.end()  # its other ranks may wait for the one that failed
        decision = decide(work.history, self._memory, ranks=work.layout.sequence)
        if isinstance(decision, GiveUp):
            if decision.quarantine:
                self._quarantined[item.shot.subject.id] = reason
            self._fail(item, reason, journal)
            return None
        if decision.plan != self._memory:
            self._memory = decision.plan
            self.say(f"out of memory: from now on with {decision.plan}")
        self.summary.retries += 1
        journal.append("retry", name=item.shot.name, attempt=attempt, kind=kind, reason=reason)
        self.say(f"{work.label} {item.shot.name}: {kind}, to be tried again: {reason}")
        return decision

    def _done(self, work: Work, made: Rendered, attempt: int, seconds: float, journal: Journal) -> None:
        item, name = work.item, work.item.shot.name
        journal.append("done", name=name, attempt=attempt, video=item.identity.video, seconds=round(seconds, 3))
        self.output.partial(item.identity.latents).unlink(missing_ok=True)
        rendered = item.action == "render"
        (self.summary.rendered if rendered else self.summary.encoded).append(name)
        self.summary.conditioning.update(made.conditioning)
        for warning in made.warnings:
            self.say(f"warning: {warning}")
        verb = "rendered" if rendered else "encoded"
        self.say(f"{work.label} {verb} in {seconds:.1f} s: {shown(self.output.path(name, 'video'))}")

    async def _make(self, gang: Gang, layout: Layout, item: Item, logs: Path) -> tuple[Rendered, tuple[str, ...]]:
        """Has the gang write a shot's ``.part`` files; what it made, and which kinds."""
        name, video = item.shot.name, self.campaign.pipeline.video
        self.output.path(name, "video").parent.mkdir(parents=True, exist_ok=True)
        kinds = ("video", "latents") if item.action == "render" and self.campaign.save_latents else ("video",)
        parts = {kind: part_path(self.output.path(name, kind)) for kind in kinds}
        try:
            if item.action == "render":
                await self._form(gang, layout)
                key = subject_key(self.campaign, item.shot, self.digests)
                digest = item.identity.latents
                return await gang.render(item.shot, key, digest, self.output, video, parts, logs), kinds
            return await gang.encode(item.shot, video, self.output.path(name, "latents"), parts, logs), kinds
        except BaseException:
            for part in parts.values():
                part.unlink(missing_ok=True)
            raise

    async def _form(self, gang: Gang, layout: Layout) -> None:
        if layout != gang.layout:
            again = " and reading their shares of the weights" if self._memory.shard else ""
            began = time.monotonic()
            await gang.form(layout)
            if layout.size == 1:
                return
            self.say(
                f"grouped {layout.size} of {len(gang.ranks)} ranks{again}: {layout}, {time.monotonic() - began:.1f} s"
            )

    async def _tell_progress(self, gang: Gang, label: str) -> None:
        while True:
            await asyncio.sleep(PROGRESS_EVERY_S)
            with contextlib.suppress(LynxError):
                seen = await gang.progress()
                self.say(f"{label}: step {seen.step}/{seen.total}")

    def _fail(self, item: Item, reason: str, journal: Journal) -> None:
        self.summary.failed.append((item.shot.name, reason))
        journal.append("failed", name=item.shot.name, reason=reason)
        self.say(f"{item.shot.name}: failed: {reason}")

    def _publish(
        self, item: Item, gang: Gang, made: Rendered, kinds: tuple[str, ...], attempt: int, seconds: float
    ) -> None:
        name = item.shot.name
        outputs = {kind: {"file": self.output.path(name, kind).name, **made.outputs[kind]} for kind in kinds}
        before = self.output.sidecar(name) if item.action == "encode" else None
        if before:
            outputs["latents"] = before["outputs"]["latents"]
        if item.stale:
            self.output.supersede(name, ("video", "sidecar", *(("latents",) if item.action == "render" else ())))
        layout = gang.layout or Layout()
        sidecar = make_sidecar(
            item, self.campaign.pipeline.model, made, outputs, layout=layout, ranks=gang.hellos[: layout.size],
            sharded=self._memory.shard and layout.sequence > 1, attempt=attempt, seconds=seconds, before=before,
        )  # fmt: skip
        self.output.commit(name, kinds, sidecar)


def _available(asked: str) -> tuple[str, int]:
    """(cuda or cpu, how many ranks of it the cluster can hold)."""
    import ray

    from lynx_parallel.gang.gang import CPUS_OF_A_CPU_RANK

    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 0)
    device = asked if asked != "auto" else "cuda" if gpus else "cpu"
    return device, gpus if device == "cuda" else int(cpus / CPUS_OF_A_CPU_RANK)


def _next_attempt(output: Output, name: str) -> int:
    folder = output.logs(name, 0).parent
    made = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    return max(made, default=0) + 1
