"""A gang: ranks agreed on one layout. It exists whole or not at all."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Iterable
from pathlib import Path
from typing import Any, Self

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

import lynx_parallel
from lynx_parallel.errors import ClusterError, LynxError, RenderError
from lynx_parallel.gang.rank import Hello, Rank, Rendered
from lynx_parallel.parallel.layout import Layout
from lynx_parallel.spec.manifest import Shot
from lynx_parallel.spec.pipeline import Video
from lynx_parallel.weights import WeightFiles

START_TIMEOUT_S = 120
CPUS_OF_A_CPU_RANK = 0.25
"""Ranks on the CPU share it; Ray only has to place them."""


class Gang:
    """Rank actors and the calls made on all of them. Build it with ``start``.

    Attributes:
        hellos: what each rank said of itself, by rank.
    """

    def __init__(self, layout: Layout, ranks: list[Any], group: PlacementGroup, hellos: list[Hello]):
        self.layout = layout
        self.ranks = ranks
        self.hellos = hellos
        self._group = group

    @classmethod
    async def start(
        cls, layout: Layout, weights: WeightFiles, *, dtype: str, device: str, denoise: bool, local: bool
    ) -> Self:
        """Places the ranks, loads the weights on each, joins them.

        Args:
            device: ``cuda`` (one GPU a rank) or ``cpu``.
            denoise: whether the transformer is needed; saved latents are encoded without.
            local: all ranks are on this machine; they meet over the loopback interface.

        Raises:
            ClusterError: the cluster cannot hold the gang, or runs another version of this package.
            LynxError: what a rank raised while loading.
        """
        threads = max(1, (os.cpu_count() or 1) // layout.size)
        bundle = {"CPU": CPUS_OF_A_CPU_RANK} if device == "cpu" else {"CPU": 1, "GPU": 1}
        group = placement_group([bundle] * layout.size, strategy="STRICT_PACK" if local else "PACK")
        ranks: list[Any] = []
        try:
            try:
                await asyncio.wait_for(_await(group.ready()), START_TIMEOUT_S)
            except (TimeoutError, GetTimeoutError):
                asked = f"{layout.size} × {bundle}"
                raise ClusterError(f"the cluster has no room: asked for {asked}, it has {_resources()}") from None
            env = {"OMP_NUM_THREADS": str(threads), **({"GLOO_SOCKET_IFNAME": "lo"} if local else {})}
            actor = ray.remote(
                num_cpus=bundle["CPU"], num_gpus=bundle.get("GPU", 0), max_restarts=0, max_task_retries=0,
                concurrency_groups={"ctl": 1}, runtime_env={"env_vars": env},
            )(Rank)  # fmt: skip
            for index in range(layout.size):
                strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
                ranks.append(actor.options(scheduling_strategy=strategy).remote(device, threads))
            hellos = await _all(rank.hello.remote() for rank in ranks)
            _check_versions(hellos)
            await _all(rank.load.remote(weights, dtype, denoise=denoise) for rank in ranks)
            store = await _await(ranks[0].open_store.remote())
            await _all(rank.join.remote(layout, index, store) for index, rank in enumerate(ranks))
        except BaseException:
            _kill(ranks, group)
            raise
        return cls(layout, ranks, group, hellos)

    def kill(self) -> None:
        """Ends every rank of this gang, and only those."""
        _kill(self.ranks, self._group)

    async def encode_prompts(self, prompts: list[str]) -> None:
        await _await(self.ranks[0].encode_prompts.remote(prompts))

    async def render(self, shot: Shot, video: Video, parts: dict[str, Path], logs: Path) -> Rendered:
        """Renders one shot; rank 0 writes ``parts``.

        Raises:
            SubjectError: the subject cannot be used; the gang stays usable.
            RenderError: a rank failed or died; the gang is of no use any more: ``kill`` it.
        """
        await _await(self.ranks[0].prepare.remote(shot))
        made = await _all(
            rank.render.remote(shot, video, parts, logs / f"rank{index}.log") for index, rank in enumerate(self.ranks)
        )
        return made[0]

    async def encode(self, shot: Shot, video: Video, latents: Path, parts: dict[str, Path], logs: Path) -> Rendered:
        """Encodes saved latents on rank 0. Raises as ``render``."""
        return await _await(self.ranks[0].encode.remote(shot, video, latents, parts, logs / "rank0.log"))

    async def progress(self) -> tuple[int, int]:
        """(steps done, steps in all) of the shot at hand."""
        return await _await(self.ranks[0].progress.remote())


async def _await(ref: Awaitable[Any]) -> Any:
    """A Ray result; what a rank raised comes back as itself, its death as RenderError."""
    try:
        return await ref
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, LynxError):
            raise cause from None
        raise RenderError(f"{type(cause).__name__}: {_first_line(cause)}") from error
    except RayError as error:
        raise RenderError(f"{type(error).__name__}: {_first_line(error)}") from error


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
