"""Starts a gang: places its ranks, checks them, and loads the weights."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

import lynx_parallel
from lynx_parallel.engine.gang import Gang
from lynx_parallel.engine.placement import (
    CHECKING,
    LOADING,
    STARTING,
    WAITING,
    Placement,
    StartOptions,
    UnfitRank,
    bundle_of,
    place,
)
from lynx_parallel.engine.ray_results import answer, first_failure_wins
from lynx_parallel.errors import ClusterError, RenderError
from lynx_parallel.failures import disk_is_full
from lynx_parallel.output.folder import Output
from lynx_parallel.rank.actor import RankActor
from lynx_parallel.rank.environment import rank_environment, threads_here
from lynx_parallel.rank.messages import Check, RankConfig

_log = logging.getLogger(__name__)

START_FACTOR = 10
"""A rank may take this many times ``hung_after`` to start. The first import on a cluster is slow."""
CHECK_FACTOR = 5
"""A self-check may take this many times ``hung_after``."""


async def start_gang(
    size: int,
    config: RankConfig,
    prompts: list[str],
    options: StartOptions,
    output: Output,
    needed: Sequence[Path] = (),
) -> Gang:
    """Places the ranks, makes each check itself and the files, and loads the weights.

    The first rank encodes the prompts before it loads, while the others load.

    Args:
        size: number of ranks.
        output: output folder, which every rank must see.
        needed: other files that every rank must see.

    Raises:
        NoRoom: the cluster cannot hold the ranks.
        UnfitRank: a rank failed its self-check, or does not see a file.
        ClusterError: a rank runs another version of this package.
        RenderError: a rank died or hung.
        LynxError: a rank raised it while loading.
    """
    options.report(WAITING)
    placement = await place(size, options)
    options.report(STARTING)
    gang = Gang([], placement.group, options.hung_after, options.see)
    try:
        for index in range(size):
            gang.ranks.append(_start_rank(index, placement, config, options))
        await meet(gang, START_FACTOR * options.hung_after)
        options.report(CHECKING)
        await check_files(gang, output, needed)
        await _check_ranks(gang, output, CHECK_FACTOR * options.hung_after)
        options.report(LOADING)
        encoded = [gang.ranks[0].encode_prompts.remote(prompts)] if prompts else []
        await gang.results([rank.load.remote() for rank in gang.ranks], first=encoded)
    except BaseException:
        gang.kill()
        raise
    return gang


def _start_rank(index: int, placement: Placement, config: RankConfig, options: StartOptions) -> Any:
    """Returns the handle of a new rank actor in bundle ``index``."""
    bundle, sharing = bundle_of(options.device), placement.sharing[index]
    actor = ray.remote(
        num_cpus=bundle["CPU"], num_gpus=bundle.get("GPU", 0), max_restarts=0, max_task_retries=0,
        concurrency_groups={"ctl": 1, "finish": 1, "ahead": 1},
    )(RankActor)  # fmt: skip
    threads = threads_here(sharing) if options.local else None
    environment = rank_environment(options.device, threads, os.environ if options.local else {})
    strategy = PlacementGroupSchedulingStrategy(placement.group, placement_group_bundle_index=index)
    in_bundle = actor.options(scheduling_strategy=strategy, runtime_env={"env_vars": environment})
    return in_bundle.remote(options.device, sharing, config)


async def meet(gang: Gang, within: float) -> None:
    """Collects each rank's hello, and sorts the ranks by machine, so that Ulysses groups stay within one.

    Args:
        within: seconds until a rank must have started.

    Raises:
        ClusterError: a rank runs another version of this package.
        RenderError: a rank has not started in time.
    """
    try:
        hellos = await asyncio.wait_for(
            first_failure_wins([answer(rank.hello.remote()) for rank in gang.ranks]), within
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
    # The machine with most ranks comes first. A layout of fewer ranks than the gang has then spans fewer machines.
    order = sorted(range(len(machines)), key=lambda index: (-count[machines[index]], machines.index(machines[index])))
    gang.ranks = [gang.ranks[index] for index in order]
    gang.hellos = [hellos[index] for index in order]
    for hello in gang.hellos:
        _log.debug("rank: %s", hello)


async def check_files(gang: Gang, output: Output, needed: Sequence[Path]) -> None:
    """Checks that every rank sees these files and can write to the output folder.

    Raises:
        UnfitRank: a rank does not.
        ClusterError: the driver itself cannot write to the output folder.
    """
    try:
        with output.probe() as probe:
            missing_by_rank = await gang.results(rank.misses.remote(probe, list(needed)) for rank in gang.ranks)
    except OSError as error:
        if disk_is_full(error):
            return  # the first shot reports it, or waits for room
        raise ClusterError(f"{error.filename or output.private}: {error.strerror or error}") from None
    for hello, missing in zip(gang.hellos, missing_by_rank, strict=True):
        if missing:
            detail, remedy = f"does not see {missing[0]}", "All machines must see it, at the same path."
            raise UnfitRank(hello, Check("output", False, 0.0, detail, remedy))


async def _check_ranks(gang: Gang, output: Output, within: float) -> None:
    try:
        calls = [rank.check.remote(output.folder) for rank in gang.ranks]
        checks_by_rank = await asyncio.wait_for(gang.results(calls), within)
    except TimeoutError:
        raise RenderError(f"a rank's self-check has not ended within {within:.0f} s", "hung") from None
    for hello, checks in zip(gang.hellos, checks_by_rank, strict=True):
        for check in checks:
            # A full disk is not the rank's fault: the rank waits for room when it writes a shot.
            writes = check.name in ("output", "ffmpeg")
            if not check.ok and not (writes and disk_is_full(RuntimeError(check.detail))):
                raise UnfitRank(hello, check)
