"""A gang: ranks agreed on one layout. It exists whole or not at all."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Iterable
from pathlib import Path
from typing import Any, Self

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

import lynx_parallel
from lynx_parallel.errors import ClusterError, LynxError, RenderError
from lynx_parallel.gang.policy import hung_after
from lynx_parallel.gang.rank import Hello, Load, Progress, Rank, Rendered
from lynx_parallel.ledger import Output
from lynx_parallel.parallel.layout import Layout
from lynx_parallel.spec.manifest import Shot
from lynx_parallel.spec.pipeline import Video

START_TIMEOUT_S = 120
HEARTBEAT_S = 30.0
WATCH_EVERY_S = 2.0
CPUS_OF_A_CPU_RANK = 0.25
"""Ranks on the CPU share it; Ray only has to place them."""


class Gang:
    """Living rank actors, of which the first few form the gang at hand. Build it with ``start``.

    Attributes:
        ranks: all of them.
        layout: of the gang at hand, which is the first ``layout.size`` ranks.
        hellos: what each rank said of itself, by rank.
    """

    def __init__(self, ranks: list[Any], group: PlacementGroup, hellos: list[Hello]):
        self.ranks = ranks
        self.layout: Layout | None = None
        self.hellos = hellos
        self._group = group

    @classmethod
    async def start(
        cls, size: int, load: Load, prompts: list[str], *, device: str, local: bool, gangs: int = 1
    ) -> Self:
        """Places the ranks, encodes the prompts on the first, loads the weights on each.

        Args:
            device: ``cuda`` (one GPU a rank) or ``cpu``.
            local: all ranks are on this machine; they meet over the loopback interface.
            gangs: that share this machine's cores.

        Raises:
            ClusterError: the cluster cannot hold the ranks, or runs another version of this package.
            LynxError: what a rank raised while loading.
        """
        threads = max(1, (os.cpu_count() or 1) // (size * gangs))
        bundle = {"CPU": CPUS_OF_A_CPU_RANK} if device == "cpu" else {"CPU": 1, "GPU": 1}
        group = placement_group([bundle] * size, strategy="STRICT_PACK" if local else "PACK")
        ranks: list[Any] = []
        try:
            try:
                await asyncio.wait_for(_await(group.ready()), START_TIMEOUT_S)
            except (TimeoutError, GetTimeoutError):
                raise ClusterError(
                    f"the cluster has no room: asked for {size} × {bundle}, it has {_resources()}"
                ) from None
            env = {"OMP_NUM_THREADS": str(threads), **({"GLOO_SOCKET_IFNAME": "lo"} if local else {})}
            actor = ray.remote(
                num_cpus=bundle["CPU"], num_gpus=bundle.get("GPU", 0), max_restarts=0, max_task_retries=0,
                concurrency_groups={"ctl": 1}, runtime_env={"env_vars": env},
            )(Rank)  # fmt: skip
            for index in range(size):
                strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
                ranks.append(actor.options(scheduling_strategy=strategy).remote(device, threads, load))
            hellos = await _all(rank.hello.remote() for rank in ranks)
            _check_versions(hellos)
            if prompts:
                await _await(ranks[0].encode_prompts.remote(prompts))
            await _all(rank.load.remote() for rank in ranks)
        except BaseException:
            _kill(ranks, group)
            raise
        return cls(ranks, group, hellos)

    async def form(self, layout: Layout) -> None:
        """Groups the first ``layout.size`` ranks anew, where they are not grouped so already.

        Raises:
            RenderError: a rank failed or died; ``kill`` the gang.
        """
        if layout == self.layout:
            return
        if self.layout is not None:
            await _all(rank.leave.remote() for rank in self.members)
        self.layout = layout
        store = await _await(self.ranks[0].open_store.remote())
        await _all(rank.join.remote(layout, index, store) for index, rank in enumerate(self.members))

    @property
    def members(self) -> list[Any]:
        """Ranks of the gang at hand."""
        return self.ranks[: self.layout.size] if self.layout else []

    def kill(self) -> None:
        """Ends every rank of this gang, and only those."""
        _kill(self.ranks, self._group)

    async def render(
        self,
        shot: Shot,
        key: str,
        digest: str,
        output: Output,
        video: Video,
        parts: dict[str, Path],
        logs: Path,
    ) -> Rendered:
        """Renders one shot; rank 0 writes ``parts``. Arguments as of ``Rank.prepare`` and ``Rank.render``.

        Raises:
            SubjectError: the subject cannot be used; the gang stays usable.
            Stopped: after ``stop``; its ranks are of no use any more.
            RenderError: a rank failed, died or hung; the gang is of no use any more: ``kill`` it.
        """
        await _await(self.ranks[0].prepare.remote(shot, key, output.folder))
        made = await self._watched(
            rank.render.remote(shot, digest, output.partial(digest), video, parts, logs / f"rank{index}.log")
            for index, rank in enumerate(self.members)
        )
        return made[0]

    async def _watched(self, refs: Iterable[Any]) -> list[Any]:
        """All ranks' results, unless a rank stops answering or its steps stop coming."""
        work, watch = asyncio.ensure_future(_all(refs)), asyncio.ensure_future(self._watch())
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                watch.result()  # raises
            return await work
        finally:
            work.cancel()
            watch.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)  # both may have failed; one has been told

    async def _watch(self) -> None:
        """Ends only by raising: a stopped process is seen by no one else."""
        steps: list[float] = []
        last = await self.progress()
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            seen = await self.progress()
            if seen.step > last.step:
                steps.append((last.age + WATCH_EVERY_S - seen.age) / (seen.step - last.step))
            last = seen
            if seen.age > (limit := hung_after(seen.step, seen.total, steps)):
                raise RenderError(f"no step for {seen.age:.0f} s (limit {limit:.0f} s)", "hung")

    async def stop(self) -> None:
        """Has the shot at hand put aside after its step, its partial state saved."""
        await _await(self.ranks[0].stop.remote())

    async def encode(self, shot: Shot, video: Video, latents: Path, parts: dict[str, Path], logs: Path) -> Rendered:
        """Encodes saved latents on rank 0. Raises as ``render``."""
        return await _await(self.ranks[0].encode.remote(shot, video, latents, parts, logs / "rank0.log"))

    async def progress(self) -> Progress:
        """How far the shot at hand is.

        Raises:
            RenderError: rank 0 does not answer, or died.
        """
        try:
            return await asyncio.wait_for(_await(self.ranks[0].progress.remote()), HEARTBEAT_S)
        except TimeoutError:
            raise RenderError(f"rank 0 does not answer for {HEARTBEAT_S:.0f} s", "hung") from None


async def _await(ref: Awaitable[Any]) -> Any:
    """A Ray result; what a rank raised comes back as itself, its death as RenderError."""
    try:
        return await ref
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, LynxError):
            raise cause from None
        out_of_memory = isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError"
        message = f"{type(cause).__name__}: {_first_line(cause)}"
        raise RenderError(message, "memory" if out_of_memory else "raised") from error
    except OutOfMemoryError as error:
        raise RenderError(f"out of host memory: {_first_line(error)}", "memory") from error
    except RayError as error:
        raise RenderError(f"{type(error).__name__}: {_first_line(error)}", "died") from error


async def _all(refs: Iterable[Any]) -> list[Any]:
    """All ranks' results; the first failure wins, since its peers may then wait forever."""
    tasks = [asyncio.ensure_future(_await(ref)) for ref in refs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _check_versions(hellos: list[Hello]) -> None:
    for hello in hellos:
        if hello.version != lynx_parallel.__version__:
            raise ClusterError(
                f"{hello.host} runs lynx-parallel {hello.version}, this driver {lynx_parallel.__version__}: "
                "install one version everywhere"
            )


def _resources() -> str:
    found = ray.cluster_resources()
    return ", ".join(f"{kind} {found.get(kind, 0):g}" for kind in ("CPU", "GPU"))


def _kill(ranks: list[Any], group: PlacementGroup) -> None:
    for rank in ranks:
        ray.kill(rank, no_restart=True)
    remove_placement_group(group)
