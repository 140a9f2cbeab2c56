"""A gang: ranks agreed on one layout. It exists whole or not at all."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

import lynx_parallel
from lynx_parallel.engine.placement import (
    CHECKING,
    LOADING,
    STARTING,
    WAITING,
    StartOptions,
    UnfitRank,
    bundle_of,
    place,
)
from lynx_parallel.engine.policy import hung_after
from lynx_parallel.engine.ray_results import answer, first_failure_wins
from lynx_parallel.errors import ClusterError, LynxError, RenderError, SubjectError
from lynx_parallel.failures import disk_is_full
from lynx_parallel.inputs.layout import Layout
from lynx_parallel.output.folder import Output
from lynx_parallel.rank.actor import RankActor
from lynx_parallel.rank.environment import rank_environment, threads_here
from lynx_parallel.rank.messages import Check, EncodeOrder, Hello, Progress, RankConfig, Rendered, RenderOrder

START_S = 10
"""Rank processes may take so many times ``hung_after`` to start: the first import on a cluster is slow."""
CHECK_S = 5
"""A self-check may take so many times ``hung_after``."""
WATCH_EVERY_S = 2.0
NO_STEPS_S = 3600.0
"""What has no steps, loading or encoding say, may take an hour, and what it waits for besides."""


class Gang:
    """Living rank actors, of which the first few form the gang at hand. Build it with ``start``.

    A rank that raises, dies or does not answer fails whatever the gang is at; it is of no use then: ``kill`` it.

    Attributes:
        ranks: all of them, those of one machine side by side.
        layout: of the gang at hand, which is the first ``layout.size`` ranks.
        hellos: what each rank said of itself, by rank.
    """

    def __init__(self, ranks: list[Any], group: PlacementGroup, hung_after: float):
        self.ranks = ranks
        self.layout: Layout | None = None
        self.hellos: list[Hello] = []
        self._group = group
        self._hung_after = hung_after

    @classmethod
    async def start(
        cls,
        size: int,
        config: RankConfig,
        prompts: list[str],
        options: StartOptions,
        output: Output,
        needed: Sequence[Path] = (),
    ) -> Self:
        """Places the ranks, has each check itself and the files, and loads the weights.

        The first rank encodes the prompts before it loads, while the others load.

        Args:
            output: must be seen by every rank, as ``needed``.

        Raises:
            NoRoom: the cluster cannot hold the ranks.
            UnfitRank: a rank failed its self-check.
            ClusterError: it runs another version of this package, or does not see the files.
            RenderError: a rank died or hung.
            LynxError: what a rank raised while loading.
        """
        options.report(WAITING)
        bundle, (group, sharing) = bundle_of(options.device), await place(size, options)
        options.report(STARTING)
        gang = cls([], group, options.hung_after)
        try:
            actor = ray.remote(
                num_cpus=bundle["CPU"], num_gpus=bundle.get("GPU", 0), max_restarts=0, max_task_retries=0,
                concurrency_groups={"ctl": 1},
            )(RankActor)  # fmt: skip
            for index in range(size):
                environment = rank_environment(
                    options.device,
                    threads_here(sharing[index]) if options.local else None,
                    os.environ if options.local else {},
                )
                rank = actor.options(
                    scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
                    runtime_env={"env_vars": environment},
                )
                gang.ranks.append(rank.remote(options.device, sharing[index], config))
            await gang._meet(START_S * options.hung_after)
            options.report(CHECKING)
            await gang._check_files(output, needed)
            await gang._check_ranks(output)
            options.report(LOADING)
            encoded = [gang.ranks[0].encode_prompts.remote(prompts)] if prompts else []
            await gang._done([rank.load.remote() for rank in gang.ranks], first=encoded)
        except BaseException:
            gang.kill()
            raise
        return gang

    async def _meet(self, within: float) -> None:
        """Hears each rank's hello, and sorts ranks by machine: groups that talk the most are contiguous."""
        try:
            hellos = await asyncio.wait_for(
                first_failure_wins([answer(rank.hello.remote()) for rank in self.ranks]), within
            )
        except TimeoutError:
            raise RenderError(f"a rank has not started within {within:.0f} s", "hung") from None
        for hello in hellos:
            if hello.version != lynx_parallel.__version__:
                raise ClusterError(
                    f"{hello.host} runs lynx-parallel {hello.version}, this driver {lynx_parallel.__version__}: "
                    "install one version everywhere"
                )
        machines = [hello.machine for hello in hellos]
        count = Counter(machines)
        # The largest part first: a layout of fewer ranks than the gang has then spans fewer machines.
        order = sorted(
            range(len(machines)), key=lambda index: (-count[machines[index]], machines.index(machines[index]))
        )
        self.ranks = [self.ranks[index] for index in order]
        self.hellos = [hellos[index] for index in order]

    async def _check_files(self, output: Output, needed: Sequence[Path]) -> None:
        try:
            with output.probe() as probe:
                found = await self._done(rank.misses.remote(probe, list(needed)) for rank in self.ranks)
        except OSError as error:
            if disk_is_full(error):
                return  # it was seen before, or will be found out at the first shot
            raise ClusterError(f"{error.filename or output.private}: {error.strerror or error}") from None
        for hello, missing in zip(self.hellos, found, strict=True):
            if missing:
                detail = f"does not see {missing[0]}"
                raise UnfitRank(
                    hello, Check("output", False, 0.0, detail, "All machines must see it, at the same path.")
                )

    async def check_seen(self, probe: Path) -> None:
        """Checks that rank 0 sees a file that the driver has just made, and can write beside it.

        Raises:
            RenderError: it does not.
        """
        [missing] = await self._done([self.ranks[0].misses.remote(probe, [])])
        if missing:
            raise RenderError(
                f"{probe.parent}: {self.hellos[0].host} does not see this folder, or cannot write to it. "
                "All machines must see it, at the same path."
            )

    async def _check_ranks(self, output: Output) -> None:
        within = CHECK_S * self._hung_after
        try:
            calls = [rank.check.remote(output.folder) for rank in self.ranks]
            found = await asyncio.wait_for(self._done(calls), within)
        except TimeoutError:
            raise RenderError(f"a rank's self-check has not ended within {within:.0f} s", "hung") from None
        for hello, checks in zip(self.hellos, found, strict=True):
            for check in checks:
                # A full disk is no fault of the rank: it waits for room when it writes a shot.
                writes = check.name in ("output", "ffmpeg")
                if not check.ok and not (writes and disk_is_full(RuntimeError(check.detail))):
                    raise UnfitRank(hello, check)

    async def encode_prompts(self, prompts: list[str]) -> None:
        """Has the first rank make prompt embeddings. Raises as ``render``."""
        await self._done([self.ranks[0].encode_prompts.remote(prompts)])

    async def form(self, layout: Layout) -> None:
        """Groups the first ``layout.size`` ranks anew, where they are not grouped so already.

        Raises:
            RenderError: a rank failed, died or hung.
        """
        if layout == self.layout:
            return
        if self.layout is not None:
            await self._done(rank.leave.remote() for rank in self.members)
        self.layout = layout
        [store] = await self._done([self.ranks[0].open_store.remote()])
        found = await self._done(rank.join.remote(layout, index, store) for index, rank in enumerate(self.members))
        failed = [(hello, check) for hello, checks in zip(self.hellos, found, strict=False) for check in checks]
        failed = [(hello, check) for hello, check in failed if not check.ok]
        # The peers of a rank whose link fails only time out.
        for hello, check in sorted(failed, key=lambda one: "timed out" in one[1].detail.lower()):
            error = RenderError(f"{check.name}: {check.detail} (on {hello.host}). {check.remedy}")
            error.place, error.host = hello.place, hello.host
            raise error

    @property
    def breaks(self) -> tuple[int, ...]:
        """Indexes of the ranks at which the next machine begins; empty on one machine."""
        machines = [hello.machine for hello in self.hellos]
        return tuple(n for n in range(1, len(machines)) if machines[n] != machines[n - 1])

    @property
    def members(self) -> list[Any]:
        """Ranks of the gang at hand."""
        return self.ranks[: self.layout.size] if self.layout else []

    def kill(self) -> None:
        """Ends every rank of this gang, and only those."""
        for rank in self.ranks:
            ray.kill(rank, no_restart=True)
        remove_placement_group(self._group)

    async def render(self, order: RenderOrder, resuming: Callable[[int], None]) -> Rendered:
        """Renders one shot.

        Args:
            resuming: called with the number of steps that the shot's resume state has done, if there is one.

        Raises:
            SubjectError: the subject cannot be used; the gang stays usable.
            Stopped: after ``stop``; its ranks are of no use any more.
            RenderError: a rank failed, died or hung.
        """
        # All calls are sent at once: no rank waits until an answer has reached the driver.
        prepared = self.ranks[0].prepare.remote(order)
        renders = [rank.render.remote(order) for rank in self.members]
        try:
            [steps_done] = await self._done([prepared])
        except SubjectError:
            await self._done(renders)  # the gang goes on: no rank may still wait for this shot's inputs
            raise
        if steps_done:
            resuming(steps_done)
        return (await self._done(renders, steps=True))[0]

    async def _done(self, refs: Iterable[Any], *, steps: bool = False, first: Sequence[Any] = ()) -> list[Any]:
        """Returns the results of one call per rank, from rank 0 on. Raises if a rank raises or stops answering.

        Args:
            steps: whether the steps of the shot must keep coming.
            first: earlier calls, one per rank from rank 0 on. They must succeed too; their results are not returned.
        """
        calls = [*(self._of(rank, ref) for rank, ref in enumerate(first))]
        calls += [self._of(rank, ref) for rank, ref in enumerate(refs)]
        work, watch = asyncio.ensure_future(first_failure_wins(calls)), asyncio.ensure_future(self._watch(steps))
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                watch.result()  # raises
            return (await work)[len(first) :]
        finally:
            work.cancel()
            watch.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)  # both may have failed; one has been told

    async def _of(self, rank: int, ref: Awaitable[Any]) -> Any:
        """Returns a rank's answer. An error that it raises gets the rank's place."""
        try:
            return await answer(ref)
        except LynxError as error:
            if self.hellos:
                error.place, error.host = self.hellos[rank].place, self.hellos[rank].host
            raise

    async def _watch(self, watch_steps: bool) -> None:
        """Ends only by raising: a stopped process is seen by no one else."""
        steps: list[float] = []
        last: Progress | None = None
        began = time.monotonic()
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            seen = (await asyncio.gather(*map(self._heartbeat, range(len(self.ranks)))))[0]
            if not watch_steps:
                if seen.waits_for:
                    began = time.monotonic()
                if time.monotonic() - began > NO_STEPS_S:
                    raise RenderError(f"not done after {NO_STEPS_S:.0f} s", "hung")
                continue
            if last is not None and seen.step > last.step:
                steps.append((last.age + WATCH_EVERY_S - seen.age) / (seen.step - last.step))
            last = seen
            limit = hung_after(seen.step, seen.total, steps, self._hung_after)
            if seen.age > limit:
                raise RenderError(f"no step for {seen.age:.0f} s (limit {limit:.0f} s)", "hung")

    async def _heartbeat(self, rank: int) -> Progress:
        try:
            return await asyncio.wait_for(self._of(rank, self.ranks[rank].progress.remote()), self._hung_after)
        except TimeoutError:
            raise RenderError(f"rank {rank} does not answer for {self._hung_after:.0f} s", "hung") from None

    async def stop(self) -> None:
        """Has the shot at hand put aside after its step, its resume state saved."""
        await answer(self.ranks[0].stop.remote())

    async def encode(self, order: EncodeOrder) -> Rendered:
        """Encodes saved latents on rank 0.

        Raises:
            DamagedError: the latents are damaged; the gang stays usable.
            RenderError: as ``render``.
        """
        [made] = await self._done([self.ranks[0].encode.remote(order)])
        return made

    async def progress(self) -> Progress:
        """How far the shot at hand is.

        Raises:
            RenderError: rank 0 does not answer, or died.
        """
        return await self._heartbeat(0)
