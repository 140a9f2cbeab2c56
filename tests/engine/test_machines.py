"""What a run may still use after something was left out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from lynx_parallel.engine.machines import APART_S, Machines
from lynx_parallel.engine.placement import Machine, StartOptions
from lynx_parallel.rank.messages import Hello
from tests.helpers.fake_gangs import VirtualTime

TWO = (Machine("bad", "10.0.0.1", 2), Machine("good", "10.0.0.2", 2))


async def hold(machine: str, gpu: str) -> object:
    return object()


def virtual(run: Callable[[], Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        return runner.run(run())


def test_a_gpu_of_a_machine_that_is_left_out_too_counts_once() -> None:
    async def run() -> list[int]:
        machines, ranks = Machines(StartOptions("cuda", False, TWO), hold), []
        for place in ("bad/0", "bad"):
            for _ in range(2):
                await machines.unfit(place, "bad", "broken")
                await asyncio.sleep(APART_S)
            ranks.append(machines.ranks)
        return ranks

    assert virtual(run) == [3, 2]


def test_failed_starts_of_one_moment_count_once() -> None:
    async def run() -> list[bool]:
        machines = Machines(StartOptions("cpu", False, TWO), hold)
        left_out = [await machines.unfit("bad", "bad", "stale file handle") for _ in range(4)]
        await asyncio.sleep(APART_S)
        return [*left_out, await machines.unfit("bad", "bad", "stale file handle")]

    assert virtual(run) == [False] * 4 + [True]


def test_a_machine_on_which_shots_succeed_is_not_left_out_for_a_failed_start() -> None:
    async def run() -> list[bool]:
        machines = Machines(StartOptions("cuda", False, TWO), hold)
        machines.succeeded([Hello(1, "bad", "H200", "flash3", "0", "bad", "0")])
        found = []
        for place in ("bad", "bad", "bad/1", "bad/1"):
            found.append(await machines.unfit(place, "bad", "broken"))
            await asyncio.sleep(APART_S)
        return found

    assert virtual(run) == [False, False, False, True]


def test_a_gpu_that_does_not_come_free_stays_in_use() -> None:
    async def busy(machine: str, gpu: str) -> None:
        return None

    async def run() -> tuple[bool, int, list[str]]:
        machines = Machines(StartOptions("cuda", False, TWO), busy)
        await machines.unfit("bad/0", "bad", "broken")
        await asyncio.sleep(APART_S)
        return await machines.unfit("bad/0", "bad", "broken"), machines.ranks, machines.left_out

    assert virtual(run) == (False, 4, [])


def test_two_gpus_of_a_machine_are_not_held_at_once() -> None:
    """Each hold takes free GPUs until it has its own: two would wait for each other's."""
    at_once = 0

    async def slow(machine: str, gpu: str) -> object:
        nonlocal at_once
        at_once += 1
        assert at_once == 1
        await asyncio.sleep(5)
        at_once -= 1
        return object()

    async def run() -> int:
        machines = Machines(StartOptions("cuda", False, TWO), slow)
        for _ in range(2):
            await asyncio.gather(*(machines.unfit(f"bad/{gpu}", "bad", "broken") for gpu in range(2)))
            await asyncio.sleep(APART_S)
        return machines.ranks

    assert virtual(run) == 2
