"""The driver: plan → gang → shots, one by one; the only process that publishes files and writes the journal.

Decisions lie in ``plan``; here they are carried out.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import lynx_parallel
from lynx_parallel.artifacts import part_path
from lynx_parallel.errors import InputErrors, LynxError, SubjectError
from lynx_parallel.ledger import Journal, Lock, Output, now
from lynx_parallel.parallel.layout import Layout
from lynx_parallel.plan import Item, Plan
from lynx_parallel.spec.cluster import ClusterSpec
from lynx_parallel.spec.manifest import Campaign, Shot
from lynx_parallel.weights import WeightFiles, transformer_config

if TYPE_CHECKING:
    from lynx_parallel.gang.gang import Gang
    from lynx_parallel.gang.rank import Rendered

PROGRESS_EVERY_S = 15.0
VAE_STRIDE = 8
_SIGNALS = (int(signal.SIGINT), int(signal.SIGTERM))


@dataclass
class Summary:
    """How a run ended; ``failed`` and ``blocked`` hold (name, reason)."""

    rendered: list[str] = field(default_factory=list)
    encoded: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    blocked: list[tuple[str, str]] = field(default_factory=list)
    stopped_by: int | None = None
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        if self.stopped_by is not None:
            return 128 + self.stopped_by
        return 1 if self.failed or self.blocked else 0


def token_count(shot: Shot, patch: tuple[int, int, int]) -> int:
    """Tokens of a shot's latents after patching."""
    sampling = shot.sampling
    frames = (sampling.num_frames - 1) // 4 + 1
    return (
        (frames // patch[0]) * (sampling.height // VAE_STRIDE // patch[1]) * (sampling.width // VAE_STRIDE // patch[2])
    )


def choose_layout(cluster: ClusterSpec, device: str, cores: int, shots: list[Shot], config: dict[str, Any]) -> Layout:
    """The layout asked for, checked against every shot; else the largest default that fits them all.

    Default: one rank on CUDA; min(2, cores) ranks on the CPU.

    Raises:
        InputErrors: a layout asked for by hand does not fit a shot.
    """

    def check(layout: Layout) -> None:
        for shot in shots:
            layout.check(heads=config["num_attention_heads"], tokens=token_count(shot, tuple(config["patch_size"])))

    if cluster.ulysses is not None:
        check(layout := Layout(ulysses=cluster.ulysses))
        return layout
    wanted = 1 if device == "cuda" else min(2, cores)
    for degree in range(wanted, 1, -1):
        with contextlib.suppress(InputErrors):
            check(layout := Layout(ulysses=degree))
            return layout
    return Layout()


class Driver:
    """Carries out one plan.

    Args:
        say: takes each line of progress.
    """

    def __init__(
        self, campaign: Campaign, plan: Plan, weights: WeightFiles, cluster: ClusterSpec, say: Callable[[str], None]
    ):
        self.campaign = campaign
        self.plan = plan
        self.weights = weights
        self.cluster = cluster
        self.say = say
        self.output = Output(campaign.output)
        self.summary = Summary(
            skipped=[item.shot.name for item in plan.of("done")],
            blocked=[(item.shot.name, item.reason) for item in plan.of("blocked")],
        )
        self._quarantined: dict[str, str] = {}

    def run(self) -> Summary:
        """Renders what the plan says. SIGINT and SIGTERM end it early, every process of ours with it.

        Raises:
            ClusterError: no Ray, no room, or another driver in this output folder.
        """
        began = time.monotonic()
        todo = self.plan.of("render", "encode")
        if todo:
            config = transformer_config(self.weights)
            if self.cluster.ulysses is not None:  # by hand: say so before any work
                choose_layout(self.cluster, "cpu", 1, [item.shot for item in todo], config)
            with self._locked() as journal:
                self._run(todo, config, journal)
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

    def _run(self, todo: list[Item], config: dict[str, Any], journal: Journal) -> None:
        from lynx_parallel.gang.cluster import ray_cluster

        try:
            with _deferred_signals() as pending, ray_cluster(self.cluster.address) as local:
                asyncio.run(self._until_stopped(todo, config, journal, local, pending))
                _hold(pending)  # the loop has put the default handlers back, and Ray is yet to end
        except SystemExit:
            # ray.init answers SIGTERM with a handler of its own, which does this.
            self.summary.stopped_by = int(signal.SIGTERM)

    async def _until_stopped(
        self, todo: list[Item], config: dict[str, Any], journal: Journal, local: bool, pending: list[int]
    ) -> None:
        """Runs the shots; a signal cancels them. Handlers are set here since ``ray.init`` sets its own."""
        work = asyncio.ensure_future(self._render_all(todo, config, journal, local))

        def stop(number: int) -> None:
            if self.summary.stopped_by is None:
                self.summary.stopped_by = number
                self.say(f"{signal.Signals(number).name}: stopping; finished shots stay, run again to go on")
                work.cancel()

        for number in _SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
        for number in pending:
            stop(number)
        with contextlib.suppress(asyncio.CancelledError):
            await work

    async def _render_all(self, todo: list[Item], config: dict[str, Any], journal: Journal, local: bool) -> None:
        from lynx_parallel.gang.gang import Gang

        device, cores = _device(self.cluster.device)
        layout = choose_layout(self.cluster, device, cores, [item.shot for item in todo], config)
        gang: Gang | None = None
        try:
            for number, item in enumerate(todo):
                if reason := self._quarantined.get(item.shot.subject.id):
                    self._fail(item, reason, journal)
                    continue
                if gang is None:
                    self.say(f"starting {layout.size} rank{'s' * (layout.size > 1)} on {device} ({_words(layout)})")
                    renders = [left.shot for left in todo[number:] if left.action == "render"]
                    gang = await Gang.start(
                        layout, self.weights, dtype=self.campaign.pipeline.model.dtype, device=device,
                        denoise=bool(renders), local=local,
                    )  # fmt: skip
                    await self._encode_prompts(gang, renders)
                if not await self._shot(gang, item, f"[{number + 1}/{len(todo)}]", journal):
                    gang.kill()
                    gang = None
        finally:
            if gang is not None:
                gang.kill()

    async def _encode_prompts(self, gang: Gang, shots: list[Shot]) -> None:
        if shots:
            from lynx_parallel.pipeline import REFERENCE_PROMPT

            texts = [text for shot in shots for text in (shot.text, shot.sampling.negative_prompt)]
            await gang.encode_prompts(list(dict.fromkeys([*texts, REFERENCE_PROMPT])))

    async def _shot(self, gang: Gang, item: Item, label: str, journal: Journal) -> bool:
        """Makes one shot; returns whether the gang may go on."""
        shot, name = item.shot, item.shot.name
        attempt = _next_attempt(self.output, name)
        journal.append("attempt", name=name, attempt=attempt, action=item.action, latents=item.identity.latents)
        self.output.path(name, "video").parent.mkdir(parents=True, exist_ok=True)
        kinds = ("video", "latents") if item.action == "render" and self.campaign.save_latents else ("video",)
        parts = {kind: part_path(self.output.path(name, kind)) for kind in kinds}
        logs, video = self.output.logs(name, attempt), self.campaign.pipeline.video
        began = time.monotonic()
        progress = asyncio.ensure_future(self._tell_progress(gang, f"{label} {name}"))
        try:
            if item.action == "render":
                made = await gang.render(shot, video, parts, logs)
            else:
                made = await gang.encode(shot, video, self.output.path(name, "latents"), parts, logs)
        except LynxError as error:
            for part in parts.values():
                part.unlink(missing_ok=True)
            if is_subject := isinstance(error, SubjectError):
                self._quarantined[shot.subject.id] = str(error)
            self._fail(item, str(error) if is_subject else f"{error} (logs: {logs})", journal)
            return is_subject
        finally:
            progress.cancel()
        seconds = time.monotonic() - began
        self._publish(item, gang, made, kinds, attempt, seconds)
        journal.append("done", name=name, attempt=attempt, video=item.identity.video, seconds=round(seconds, 3))
        done, verb = (
            (self.summary.rendered, "rendered") if item.action == "render" else (self.summary.encoded, "encoded")
        )
        done.append(name)
        self.say(f"{label} {verb} in {seconds:.1f} s: {self.output.path(name, 'video')}")
        return True

    async def _tell_progress(self, gang: Gang, label: str) -> None:
        while True:
            await asyncio.sleep(PROGRESS_EVERY_S)
            with contextlib.suppress(LynxError):
                step, total = await gang.progress()
                self.say(f"{label}: step {step}/{total}")

    def _fail(self, item: Item, reason: str, journal: Journal) -> None:
        self.summary.failed.append((item.shot.name, reason))
        journal.append("failed", name=item.shot.name, reason=reason)
        self.say(f"{item.shot.name}: failed: {reason}")

    def _publish(
        self, item: Item, gang: Gang, made: Rendered, kinds: tuple[str, ...], attempt: int, seconds: float
    ) -> None:
        name = item.shot.name
        outputs = {kind: {"file": self.output.path(name, kind).name, **made.outputs[kind]} for kind in kinds}
        if item.action == "encode" and (old := self.output.sidecar(name)):
            outputs["latents"] = old["outputs"]["latents"]
        if item.stale:
            self.output.supersede(name, ("video", "sidecar", *(("latents",) if item.action == "render" else ())))
        self.output.commit(name, kinds, self._sidecar(item, gang, outputs, made, attempt, seconds))

    def _sidecar(
        self, item: Item, gang: Gang, outputs: dict[str, Any], made: Rendered, attempt: int, seconds: float
    ) -> dict[str, Any]:
        shot, layout = item.shot, gang.layout
        subject, consent = shot.subject, shot.subject.consent
        return {
            "name": shot.name,
            "shot": {"subject": subject.id, "prompt": shot.prompt.id, "take": shot.take, "seed": shot.seed},
            "digests": {"latents": item.identity.latents, "video": item.identity.video},
            "outputs": outputs,
            "settings": dict(item.identity.settings),
            "encoding": dict(item.identity.encoding),
            "model": self.campaign.pipeline.model.model_dump(),
            "labels": subject.labels,
            "consent": consent and {"ref": consent.ref, "scope": consent.scope, "expires": str(consent.expires or "")},
            "layout": {"guidance": layout.guidance, "ring": layout.ring, "ulysses": layout.ulysses},
            "ranks": [
                {"rank": rank, "pid": hello.pid, "host": hello.host, "device": hello.device}
                for rank, hello in enumerate(gang.hellos)
            ],
            "attempt": attempt,
            "seconds": {**made.seconds, "total": round(seconds, 3)},
            "exactness": {},
            "finished": now(),
            "lynx_parallel": lynx_parallel.__version__,
        }


def _device(asked: str) -> tuple[str, int]:
    """(cuda or cpu, CPU cores of the cluster)."""
    import ray

    resources = ray.cluster_resources()
    device = asked if asked != "auto" else "cuda" if resources.get("GPU", 0) >= 1 else "cpu"
    return device, int(resources.get("CPU", 1))


def _words(layout: Layout) -> str:
    return "no split" if layout.size == 1 else f"Ulysses {layout.ulysses}"


def _next_attempt(output: Output, name: str) -> int:
    folder = output.logs(name, 0).parent
    made = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    return max(made, default=0) + 1


@contextlib.contextmanager
def _deferred_signals() -> Iterator[list[int]]:
    """Holds SIGINT and SIGTERM back while Ray starts and ends: half-started, it could not be taken down."""
    pending: list[int] = []
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    _hold(pending)
    try:
        yield pending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _hold(pending: list[int]) -> None:
    for number in _SIGNALS:
        signal.signal(number, lambda received, _: pending.append(received))
