"""One attempt at one shot: a gang makes its files, the driver publishes them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_parallel.artifacts import disk_is_full, machine_at_fault, part_path
from lynx_parallel.crops import Crops
from lynx_parallel.errors import InputErrors, LynxError, RenderError, SubjectError
from lynx_parallel.gang.messages import Rendered
from lynx_parallel.gang.policy import Footprint
from lynx_parallel.identity import crops_source, identify, subject_key
from lynx_parallel.layouts import Layouts
from lynx_parallel.ledger import Journal, Output
from lynx_parallel.parallel.layout import Layout
from lynx_parallel.plan import Item
from lynx_parallel.sidecar import make_sidecar
from lynx_parallel.spec.cluster import ClusterSpec
from lynx_parallel.spec.manifest import Campaign
from lynx_parallel.summary import Summary
from lynx_parallel.weights import FaceFiles, WeightFiles

if TYPE_CHECKING:
    from lynx_parallel.gang.gang import Gang

PROGRESS_EVERY_S = 15.0


@dataclass(frozen=True)
class Run:
    """What all parts of one run share.

    Attributes:
        digests: of the weights, by ``weights.weight_digests``.
        say: takes each line of progress.
        name: of its record.
    """

    campaign: Campaign
    weights: WeightFiles
    face: FaceFiles | None
    digests: Mapping[str, str]
    cluster: ClusterSpec
    layouts: Layouts
    output: Output
    journal: Journal
    summary: Summary
    say: Callable[[str], None]
    name: str = ""


class Attempt:
    """One attempt at one shot.

    Args:
        number: from 1, over all runs.
        count: returns how many shots are finished, as lines of progress begin.
    """

    def __init__(self, run: Run, item: Item, number: int, count: Callable[[], str]):
        self.run = run
        self.item = item
        self.number = number
        self._count = count
        self.logs = run.output.logs(item.shot.name, number)

    async def make(self, gang: Gang, layout: Layout, footprint: Footprint) -> tuple[Rendered, float]:
        """Has the gang make the shot, and publishes it; what was made, and in how many seconds.

        Raises:
            SubjectError: its picture or embedding is another than the plan's, before or after.
            LynxError: as of ``Gang.render``; nothing is published then, and nothing half-written left.
            OSError: the files could not be published.
        """
        run, item, name = self.run, self.item, self.item.shot.name
        began = time.monotonic()
        run.output.path(name, "video").parent.mkdir(parents=True, exist_ok=True)
        await self._check_folder(gang)
        kinds = ("video", "latents") if item.action == "render" and run.campaign.save_latents else ("video",)
        parts = {kind: part_path(run.output.path(name, kind), self.number) for kind in kinds}
        try:
            self._check_subject()
            with told_every(PROGRESS_EVERY_S, lambda _: self._tell_progress(gang)):
                made = await self._files(gang, layout, footprint, parts)
            self._check_subject()
            self._publish(gang, footprint, made, kinds, time.monotonic() - began)
        except BaseException:
            for part in parts.values():
                part.unlink(missing_ok=True)
            raise
        return made, time.monotonic() - began

    async def _check_folder(self, gang: Gang) -> None:
        """Tries to publish where the shot's files belong: a subject's folder may be a link or a mount of its own.

        A full disk is waited for once the shot is made.
        """
        output = self.run.output
        try:
            with output.probe_shot(self.item.shot.name, stale=self.item.stale) as probe:
                if probe.stat().st_dev != output.private.stat().st_dev:  # the rank's self-check was of ``.lynx``
                    await gang.check_seen(probe)
        except OSError as error:
            if not disk_is_full(error):
                raise

    def _check_subject(self) -> None:
        """A partial state is forgotten with a subject that changed: it may be of either picture."""
        run, item = self.run, self.item
        try:
            same = identify(run.campaign, item.shot, run.digests) == item.identity
        except InputErrors as error:
            raise (RenderError if machine_at_fault(error) else SubjectError)(str(error)) from None
        if not same:
            run.output.partial(item.identity.resume).unlink(missing_ok=True)
            raise SubjectError("its picture or embedding changed after the run began; run again")

    async def _files(self, gang: Gang, layout: Layout, footprint: Footprint, parts: dict[str, Path]) -> Rendered:
        run, item, video = self.run, self.item, self.run.campaign.pipeline.video
        if item.action == "encode":
            return await gang.encode(item.shot, video, run.output.path(item.shot.name, "latents"), parts, self.logs)
        if layout != gang.layout:
            again = " and reading their shares of the weights" if footprint.shard else ""
            began = time.monotonic()
            await gang.form(layout)
            if layout.size > 1:
                count = f"{layout.size} of {len(gang.ranks)} ranks"
                run.say(f"grouped {count}{again}: {layout}, {time.monotonic() - began:.1f} s")
        device = "cpu" if gang.hellos[0].device == "cpu" else "cuda"
        key = subject_key(run.campaign, item.shot, run.digests, device)
        crops = Crops(
            run.output.folder, item.shot.subject.id, crops_source(run.campaign, item.shot.subject, run.digests),
            run.campaign.reference_sizes.get(item.shot.subject.id, frozenset()), run.campaign.faces == "private",
        )  # fmt: skip
        return await gang.render(
            item.shot, key, crops, item.identity.resume, run.output, video, parts, self.logs, self._say_resuming
        )

    def _publish(
        self, gang: Gang, footprint: Footprint, made: Rendered, kinds: tuple[str, ...], seconds: float
    ) -> None:
        item, output, name = self.item, self.run.output, self.item.shot.name
        outputs = {kind: {"file": output.path(name, kind).name, **made.outputs[kind]} for kind in kinds}
        before = output.sidecar(name) if item.action == "encode" else None
        if before:
            outputs["latents"] = before["outputs"]["latents"]
        if item.stale:
            output.supersede(name, ("video", "sidecar", *(("latents",) if item.action == "render" else ())))
        layout = gang.layout or Layout()
        sidecar = make_sidecar(
            item, self.run.campaign.pipeline.model, made, outputs, layout=layout, ranks=gang.hellos[: layout.size],
            sharded=footprint.shard and layout.sequence > 1, attempt=self.number, seconds=seconds, before=before,
            run=self.run.name,
        )  # fmt: skip
        output.commit(name, kinds, sidecar, self.number)

    async def _tell_progress(self, gang: Gang) -> None:
        with contextlib.suppress(LynxError):
            seen = await gang.progress()
            doing = f"waits for {seen.waits_for}" if seen.waits_for else f"step {seen.step}/{seen.total}"
            self._say(doing)

    def _say_resuming(self, done: int) -> None:
        total = self.item.shot.sampling.num_inference_steps
        self._say(f"resuming at step {done + 1} of {total}" if done < total else "resuming after its last step")

    def _say(self, what: str) -> None:
        self.run.say(f"{self._count()} {self.item.shot.name}: {what}")


@contextlib.contextmanager
def told_every(seconds: float, tell: Callable[[float], Awaitable[None]]) -> Iterator[None]:
    """Has progress told during the block; ``tell`` gets the seconds since its beginning."""

    async def telling() -> None:
        for count in itertools.count(1):
            await asyncio.sleep(seconds)
            await tell(count * seconds)

    task = asyncio.ensure_future(telling())
    try:
        yield
    finally:
        task.cancel()


def next_attempt(output: Output, name: str, least: int) -> int:
    """Number of a shot's next attempt: after all whose logs are there, and not less than ``least``."""
    made = [least - 1]
    with contextlib.suppress(OSError):
        made += [int(path.name) for path in output.logs(name, 0).parent.iterdir() if path.name.isdecimal()]
    return max(made) + 1
