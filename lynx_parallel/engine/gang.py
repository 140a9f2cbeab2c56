"""A gang: ranks agreed on one layout. It exists whole or not at all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from lynx_parallel.engine.policy import hung_after
from lynx_parallel.engine.ray_results import answer, first_failure_wins
from lynx_parallel.errors import LynxError, RenderError, SubjectError
from lynx_parallel.inputs.layout import Layout
from lynx_parallel.inputs.manifest import Shot
from lynx_parallel.rank.messages import EncodeOrder, Hello, Progress, Rendered, RenderOrder

WATCH_EVERY_S = 2.0
"""Seconds between two calls of each rank's ``progress``."""
NO_STEPS_S = 3600.0
"""Seconds after which work without steps, such as loading or encoding, counts as hung. Waiting does not count."""


class Gang:
    """Living rank actors, of which the first few form the current process group. ``start_gang`` makes one.

    A rank that raises, dies or hangs fails the current call. The gang cannot be used again: ``kill`` it.

    Attributes:
        ranks: handles of all actors. Ranks of one machine are neighbours.
        layout: of the current process group, which is the first ``layout.size`` ranks; None before ``form``.
        hellos: what each rank has reported about itself, in the order of ``ranks``.
        one_expert: whether its ranks hold one of two transformers at a time.
    """

    def __init__(
        self,
        ranks: list[Any],
        group: PlacementGroup,
        hung_after: float,
        see: Callable[[Progress], None] = lambda progress: None,
    ):
        self.ranks = ranks
        self.layout: Layout | None = None
        self.hellos: list[Hello] = []
        self.one_expert = False
        self._group = group
        self._hung_after = hung_after
        self._see = see

    async def check_seen(self, probe: Path) -> None:
        """Checks that rank 0 sees a file that the driver has just made, and can write beside it.

        Raises:
            RenderError: it does not.
        """
        [missing] = await self.results([self.ranks[0].misses.remote(probe, [])])
        if missing:
            raise RenderError(
                f"{probe.parent}: {self.hellos[0].host} does not see this folder, or cannot write to it. "
                "All machines must see it, at the same path."
            )

    async def encode_prompts(self, prompts: list[str]) -> None:
        """Makes prompt embeddings on the first rank. Raises as ``render``."""
        await self.results([self.ranks[0].encode_prompts.remote(prompts)])

    async def form(self, layout: Layout) -> None:
        """Forms a process group of the first ``layout.size`` ranks. Does nothing if they have this layout.

        Raises:
            RenderError: a rank failed, died or hung.
        """
        if layout == self.layout:
            return
        if self.layout is not None:
            await self.results(rank.leave.remote() for rank in self.members)
        self.layout = layout
        [store] = await self.results([self.ranks[0].open_store.remote()])
        checks_by_rank = await self.results(
            rank.join.remote(layout, index, store) for index, rank in enumerate(self.members)
        )
        failed = [
            (hello, check) for hello, checks in zip(self.hellos, checks_by_rank, strict=False) for check in checks
        ]
        failed = [(hello, check) for hello, check in failed if not check.ok]
        # A rank whose link fails gives the reason. Its peers only time out.
        for hello, check in sorted(failed, key=lambda one: "timed out" in one[1].detail.lower()):
            error = RenderError(f"{check.name}: {check.detail} (on {hello.host}). {check.remedy}")
            error.place, error.host = hello.place, hello.host
            raise error
        [self.one_expert] = await self.results([self.ranks[0].holds_one_expert.remote()])

    @property
    def breaks(self) -> tuple[int, ...]:
        """Indexes of the ranks at which the next machine begins; empty on one machine."""
        machines = [hello.machine for hello in self.hellos]
        return tuple(n for n in range(1, len(machines)) if machines[n] != machines[n - 1])

    @property
    def members(self) -> list[Any]:
        """Ranks of the current process group."""
        return self.ranks[: self.layout.size] if self.layout else []

    def kill(self) -> None:
        """Ends every rank of this gang, and only those."""
        for rank in self.ranks:
            ray.kill(rank, no_restart=True)
        remove_placement_group(self._group)

    async def render(self, order: RenderOrder, prepared: Callable[[int], None]) -> bool:
        """Denoises and decodes one shot. The gang can then take the next one, while rank 0 finishes this one.

        Returns whether the shot is decoded, see ``RenderOrder.first_expert``.

        Args:
            prepared: called before the first step, with the number of steps that the shot's resume state has done.

        Raises:
            SubjectError: the subject cannot be used; the gang stays usable.
            Stopped: after ``stop``; the gang cannot be used again.
            RenderError: a rank failed, died or hung.
        """
        # All calls are sent at once: no rank waits until an answer has reached the driver.
        preparation = self.ranks[0].prepare.remote(order)
        renders = [rank.render.remote(order) for rank in self.members]
        try:
            [steps_done] = await self.results([preparation])
        except SubjectError:
            await self.results(renders)  # the gang makes further shots: no rank may still wait for these inputs
            raise
        prepared(steps_done)
        return (await self.results(renders, steps=True))[0]

    async def finish(self, order: RenderOrder) -> Rendered:
        """Encodes a shot that was decoded, on rank 0. Another shot may be rendered meanwhile.

        Raises:
            RenderError: the encoder failed, and the gang stays usable; or rank 0 died or hung.
        """
        [made] = await self.results([self.ranks[0].finish.remote(order)])
        return made

    def prepare_ahead(self, shot: Shot, subject_key: str) -> None:
        """Makes rank 0 find the face of a later shot's subject. Returns at once, and never raises."""
        self.ranks[0].prepare_ahead.remote(shot, subject_key)

    async def results(self, refs: Iterable[Any], *, steps: bool = False, first: Sequence[Any] = ()) -> list[Any]:
        """Returns the results of one call per rank, from rank 0 on. Raises if a rank raises, dies or hangs.

        Args:
            refs: the pending calls.
            steps: whether the ranks denoise, so that a step that takes too long is a hang.
            first: further pending calls, one per rank. They must succeed too. Their results are not returned.
        """
        calls = [*(self._answer(rank, ref) for rank, ref in enumerate(first))]
        calls += [self._answer(rank, ref) for rank, ref in enumerate(refs)]
        work, watch = asyncio.ensure_future(first_failure_wins(calls)), asyncio.ensure_future(self._watch(steps))
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                watch.result()  # raises
            return (await work)[len(first) :]
        finally:
            work.cancel()
            watch.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)  # both may have failed; one failure is enough

    async def _answer(self, rank: int, ref: Awaitable[Any]) -> Any:
        """Returns the result of a rank's call. Adds the rank's place to an error."""
        try:
            return await answer(ref)
        except LynxError as error:
            if self.hellos:
                error.place, error.host = self.hellos[rank].place, self.hellos[rank].host
            raise

    async def _watch(self, watch_steps: bool) -> None:
        """Polls the ranks until one hangs, then raises. Ray does not notice stopped processes."""
        steps: list[float] = []
        last: Progress | None = None
        began = time.monotonic()
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            every = await asyncio.gather(*map(self._heartbeat, range(len(self.ranks))))
            progress = every[0]
            fullest = max(every, key=lambda one: one.memory)
            self._see(replace(progress, memory=fullest.memory, memory_total=fullest.memory_total))
            if not watch_steps:
                if progress.waits_for:
                    began = time.monotonic()
                if time.monotonic() - began > NO_STEPS_S:
                    raise RenderError(f"not done after {NO_STEPS_S:.0f} s", "hung")
                continue
            if last is not None and progress.step > last.step:
                steps.append((last.age + WATCH_EVERY_S - progress.age) / (progress.step - last.step))
            last = progress
            limit = hung_after(progress.step, progress.total, steps, self._hung_after)
            if progress.age > limit:
                raise RenderError(f"no step for {progress.age:.0f} s (limit {limit:.0f} s)", "hung")

    async def _heartbeat(self, rank: int) -> Progress:
        try:
            return await asyncio.wait_for(self._answer(rank, self.ranks[rank].progress.remote()), self._hung_after)
        except TimeoutError:
            raise RenderError(f"rank {rank} does not answer for {self._hung_after:.0f} s", "hung") from None

    async def stop(self) -> None:
        """Asks rank 0 to save a resume state after the current step and to end the shot with ``Stopped``."""
        await answer(self.ranks[0].stop.remote())

    async def encode(self, order: EncodeOrder) -> Rendered:
        """Encodes saved latents on rank 0.

        Raises:
            DamagedError: the latents are damaged; the gang stays usable.
            RenderError: as ``render``.
        """
        [made] = await self.results([self.ranks[0].encode.remote(order)])
        return made

    async def progress(self) -> Progress:
        """Returns the progress of the current shot.

        Raises:
            RenderError: rank 0 does not answer, or died.
        """
        return await self._heartbeat(0)
