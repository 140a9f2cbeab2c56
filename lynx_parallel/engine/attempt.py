"""One attempt at one shot: a gang makes the files, and the driver publishes them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_parallel.engine.periodic import PROGRESS_EVERY_S, report_every
from lynx_parallel.engine.policy import Footprint
from lynx_parallel.engine.publication import publish_made
from lynx_parallel.engine.run import Run
from lynx_parallel.engine.sidecar import made_by
from lynx_parallel.errors import InputErrors, LynxError, RenderError, SubjectError, WithheldError
from lynx_parallel.failures import disk_is_full, machine_at_fault
from lynx_parallel.inputs.layout import Layout
from lynx_parallel.output.atomic import part_path, publish, set_aside
from lynx_parallel.output.crops import Crops
from lynx_parallel.output.finished_latents import (
    find_latents,
    remove_unpublished,
    unpublished_path,
    write_record,
)
from lynx_parallel.output.marks import Mark
from lynx_parallel.plan.digests import crops_source, shot_digests
from lynx_parallel.plan.plan import Item
from lynx_parallel.rank.messages import EncodeOrder, Rendered, RenderOrder, ScoreOrder

if TYPE_CHECKING:
    from lynx_parallel.engine.gang import Gang
    from lynx_parallel.engine.gate import Gate


class Attempt:
    """One attempt at one shot.

    Args:
        number: from 1, over all runs.
        count: returns how many shots are finished, as lines of progress begin.
        gate: that the video must pass to become the shot.

    Attributes:
        stage: what is done for the shot now, in words.
        kept: whether the finished video became the shot. If not, it is a candidate or a preview.
    """

    def __init__(self, run: Run, item: Item, number: int, count: Callable[[], str], gate: Gate | None = None):
        self.run = run
        self.item = item
        self.number = number
        self._count = count
        self._gate = gate
        self.kept = True
        self.logs = run.output.logs(item.shot.name, number)
        self._order: RenderOrder | None = None
        self._ranks: dict[str, Any] = {}
        self._began = 0.0
        self.stage = "preparing"

    async def make(
        self,
        gang: Gang,
        layout: Layout,
        footprint: Footprint,
        prepared: Callable[[int], None],
        *,
        first_expert: bool = False,
    ) -> bool:
        """Denoises and decodes the shot on the gang. ``finish`` does the rest. Of an encoding, ``finish`` does all.

        Args:
            prepared: as in ``Gang.render``.
            first_expert: if the gang holds one expert at a time, end before that of low noise is needed.

        Returns:
            Whether ``finish`` can follow. If not, ``make`` must be called again.

        Raises:
            SubjectError: its picture or embedding has changed since the plan.
            LynxError: see ``Gang.render``. Then only finished latents are published, and nothing half-written
                is left.
            OSError: the output folder does not take files.
        """
        run, item, name = self.run, self.item, self.item.shot.name
        self._gang, self._footprint = gang, footprint
        self._began = self._began or time.monotonic()
        self.stage = "preparing"

        def begin(done: int) -> None:
            self.stage = "denoising"
            run.resumed.setdefault(name, done)
            prepared(done)

        for path in (run.output.path(name, "video"), self._parts["video"]):
            path.parent.mkdir(parents=True, exist_ok=True)
        await self._check_folder(gang)
        with self._keeping_latents():
            self._check_subject()
            if item.denoises:
                order = await self._form(gang, layout, footprint)
                first_expert = first_expert and gang.one_expert and item.action == "render"
                self._order = replace(order, first_expert=first_expert)
                self._ranks = self._made_by(gang, footprint)
                with report_every(PROGRESS_EVERY_S, lambda _: self._tell_progress(gang)):
                    decoded = await gang.render(self._order, begin)
                if decoded:
                    self.stage = "encoding"
                    run.summary.steps += max(item.steps - run.resumed.pop(name, 0), 0)
                self._check_subject()
                return decoded
        return True

    async def finish(self) -> tuple[Rendered, float]:
        """Encodes and publishes the shot. Returns what was made, and the seconds since ``make`` began.

        Another shot may be rendered on the gang meanwhile, unless this is an encoding of saved latents.

        Raises:
            SubjectError: its picture or embedding has changed since the plan.
            DamagedError: the latents to encode are damaged.
            LynxError: see ``Gang.finish`` and ``Gang.encode``. What is left is as after ``make``.
            OSError: the files could not be published.
        """
        self.stage = "encoding"
        with self._keeping_latents():
            with report_every(PROGRESS_EVERY_S, lambda _: self._tell("encoding")):
                made = await (self._gang.finish(self._order) if self._order else self._encode())
            self._check_subject()
            self.kept = publish_made(
                self.run, self.item, made, self._parts, number=self.number, seconds=time.monotonic() - self._began,
                ranks=self._ranks, gate=self._gate,
            )  # fmt: skip
        return made, time.monotonic() - self._began

    @contextlib.contextmanager
    def _keeping_latents(self) -> Iterator[None]:
        """After a failure in the block: publishes finished latents, and removes a half-written video."""
        try:
            yield
        except BaseException as error:
            for kind in ("video", "poster"):
                self._parts[kind].unlink(missing_ok=True)
            if isinstance(error, WithheldError):
                self._remove_withheld()
            elif self.item.action == "render":
                self._keep_latents()
            raise

    @cached_property
    def _parts(self) -> dict[str, Path]:
        """Where rank 0 writes the files."""
        output, name, action = self.run.output, self.item.shot.name, self.item.action
        video = output.preview(name) if action == "audition" else output.path(name, "video")
        parts = {"video": part_path(video, self.number), "poster": part_path(output.poster(name), self.number)}
        return {**parts, "latents": unpublished_path(output, name)} if action == "render" else parts

    async def _check_folder(self, gang: Gang) -> None:
        """Tries to publish in the shot's folder, which may be a link or another mount. A full disk is no error here."""
        output = self.run.output
        try:
            with output.probe_shot(self.item.shot.name, stale=self.item.stale) as probe:
                if (
                    probe.stat().st_dev != output.private.stat().st_dev
                ):  # the self-check of ranks has tried ``.lynx`` only
                    await gang.check_seen(probe)
        except OSError as error:
            if not disk_is_full(error):
                raise

    def _check_subject(self) -> None:
        """Raises if the subject has changed. Removes its state and latents then: they may be of either picture."""
        run, item = self.run, self.item
        try:
            same = shot_digests(run.campaign, item.shot, run.weight_digests) == item.digests
        except InputErrors as error:
            raise (RenderError if machine_at_fault(error) else SubjectError)(str(error)) from None
        if not same:
            run.output.resume_state(item.digests.resume).unlink(missing_ok=True)
            remove_unpublished(run.output, item.shot.name)
            raise SubjectError("its picture or embedding changed after the run began; run again")

    def _keep_latents(self) -> None:
        """Publishes latents that are finished without a video. If old files exist, they stay under ``.lynx``.

        They also stay there without ``save_latents``. An encoding checks their content.
        """
        output, name = self.run.output, self.item.shot.name
        with contextlib.suppress(LynxError, OSError):
            if find_latents(output, name, self.item.digests.latents_digests, published=False) is None:
                remove_unpublished(output, name)  # files of a killed rank
                return
            self._check_subject()
            if self.run.campaign.save_latents and not output.has_files(name):
                publish(unpublished_path(output, name), output.path(name, "latents"))

    def _remove_withheld(self) -> None:
        """Removes all that was made of a shot that the safety checker withholds. An older video stays."""
        output, item = self.run.output, self.item
        remove_unpublished(output, item.shot.name)
        for path in (item.latents, output.resume_state(item.digests.resume)):
            if path is not None:
                path.unlink(missing_ok=True)

    def set_latents_aside(self) -> Path:
        """Moves the damaged latents of this encoding to ``.lynx/damaged/``. Returns their new path."""
        output, name = self.run.output, self.item.shot.name
        path = self.item.latents or output.path(name, "latents")
        return set_aside(path, (output.private / "damaged" / name).parent)

    async def _encode(self) -> Rendered:
        """Encodes saved latents."""
        run, item = self.run, self.item
        self._ranks = self._made_by(self._gang, self._footprint)
        latents, video = item.latents or run.output.path(item.shot.name, "latents"), run.campaign.pipeline.video
        order = EncodeOrder(
            item.shot, video, latents, self._parts, self.logs, self._sha256(), self._score_order(), self._mark
        )
        return await self._gang.encode(order)

    async def _form(self, gang: Gang, layout: Layout, footprint: Footprint) -> RenderOrder:
        """Groups the ranks in this layout. Returns the order to render the shot."""
        run, item = self.run, self.item
        if layout != gang.layout:
            again = " and reading their shares of the weights" if footprint.shard else ""
            began = time.monotonic()
            await gang.form(layout)
            if layout.size > 1:
                count = f"{layout.size} of {len(gang.ranks)} ranks"
                run.say(f"grouped {count}{again}: {layout}, {time.monotonic() - began:.1f} s")
        crops = Crops(
            run.output.folder, item.shot.subject.id, crops_source(run.campaign, item.shot.subject, run.weight_digests),
            run.campaign.reference_sizes.get(item.shot.subject.id, frozenset()), run.campaign.faces == "private",
        )  # fmt: skip
        if item.action == "render":
            write_record(run.output, item.shot.name, made_by(**self._made_by(gang, footprint)))
        digest = item.digests.resume
        return RenderOrder(
            item.shot, digest, item.digests.settings, run.subject_key(item.shot, gang), crops,
            run.output.resume_state(digest), run.campaign.pipeline.video, self._parts, self.logs,
            until=item.steps if item.action == "audition" else None, score=self._score_order(), mark=self._mark,
        )  # fmt: skip

    @property
    def _mark(self) -> Mark:
        """What the video file says of itself. Nothing in it names the person."""
        shot, digest = self.item.shot, self.item.digests.video
        if self.run.campaign.pipeline.video.metadata == "minimal":
            return Mark(digest)
        return Mark(digest, shot.text, shot.seed)

    def _score_order(self) -> ScoreOrder | None:
        """Returns how rank 0 scores the video, or None if it does not."""
        quality, recognizer, shot = self.run.campaign.quality, self.run.recognizer, self.item.shot
        subject = shot.subject
        if quality is None or recognizer is None or subject.image is None:
            return None
        if self._gate is None and shot.audition is None:
            return None
        return ScoreOrder(recognizer, subject.image, subject.face, subject.landmarks, quality.frames)

    def _sha256(self) -> str | None:
        """Returns the sha256 of the latents to encode by their sidecar, or None if there is none."""
        sidecar = None if self.item.latents else self.run.output.sidecar(self.item.shot.name)
        return sidecar["outputs"].get("latents", {}).get("sha256") if sidecar else None

    def _made_by(self, gang: Gang, footprint: Footprint) -> dict[str, Any]:
        """Returns the ranks that make the shot, as arguments of ``made_by``."""
        layout = gang.layout or Layout()
        sharded = footprint.shard and layout.sequence > 1
        return {"layout": layout, "ranks": gang.hellos[: layout.size], "sharded": sharded}

    async def _tell_progress(self, gang: Gang) -> None:
        with contextlib.suppress(LynxError):
            seen = await gang.progress()
            await self._tell(f"waits for {seen.waits_for}" if seen.waits_for else f"step {seen.step}/{seen.total}")

    def say_resuming(self, done: int) -> None:
        """Reports a resume state, if the shot has one."""
        total = self.item.shot.sampling.num_inference_steps
        if done:
            self._say(f"resuming at step {done + 1} of {total}" if done < total else "resuming after its last step")

    async def _tell(self, news: str) -> None:
        self.run.show_progress(self._line(news))

    def _say(self, news: str) -> None:
        self.run.say(self._line(news))

    def _line(self, news: str) -> str:
        return f"{self._count()} {self.run.shown(self.item.shot.name)}: {news}"
