"""Where ranks go, with a real Ray of two machines that have invented GPUs. Nothing here touches a GPU."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import remove_placement_group

from lynx_parallel.engine.placement import (
    Machine,
    NoRoom,
    StartOptions,
    _nodes,
    _sharing,
    _strategies,
    available,
    hold_gpu,
    place,
)

A, B = Machine("a", "10.0.0.1", 4), Machine("b", "10.0.0.2", 4)


@pytest.mark.parametrize(
    ("size", "local", "machines", "excluded", "expected"),
    [
        (2, True, (A,), (), ["STRICT_PACK"]),
        (4, False, (A, B), (), ["STRICT_PACK", "PACK"]),
        (8, False, (A, B), (), ["PACK"]),
        (4, False, (A, B), ("b",), ["STRICT_PACK"]),
        (8, False, (A, B), ("b",), ["PACK"]),
    ],
)
def test_one_machine_comes_first(
    size: int, local: bool, machines: tuple[Machine, ...], excluded: tuple[str, ...], expected: list[str]
) -> None:
    options = StartOptions("cuda", local, machines, frozenset(excluded))
    tried = _strategies(size, options)
    assert [strategy for strategy, _ in tried] == expected
    assert sum(within for _, within in tried) == options.room_within


def test_ranks_share_the_cores_of_their_own_machine() -> None:
    gpus = StartOptions("cuda", False, (A, Machine("b", "", 8)), gangs=3)
    assert _sharing(3, gpus, ["a", "a", "b"]) == [4, 4, 8]  # every GPU of a machine may come to have a rank
    cpus = StartOptions("cpu", True, (A,), gangs=3)
    assert _sharing(2, cpus, ["a", "a"]) == [6, 6]


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Machine, ...]]:
    """A head and a second machine, with three GPUs each."""
    before = dict(os.environ)
    os.environ |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    size: dict[str, Any] = {"num_cpus": 3, "num_gpus": 3, "object_store_memory": 80 * 2**20}
    nodes = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    nodes.add_node(**size)
    ray.init(nodes.address, log_to_driver=False, logging_level="ERROR")
    nodes.wait_for_nodes()
    device, machines = available("auto")
    assert device == "cuda"
    yield machines
    ray.shutdown()
    nodes.shutdown()
    os.environ.clear()
    os.environ |= before


def nodes_of(size: int, options: StartOptions) -> Counter[str]:
    """How many of a gang's bundles each machine holds; the room is given back."""

    async def placed() -> Counter[str]:
        group, sharing = await place(size, options)
        try:
            assert sharing == [3] * size
            return Counter(_nodes(group))
        finally:
            remove_placement_group(group)

    return asyncio.run(placed())


def test_a_gang_goes_on_one_machine_if_it_can(cluster: tuple[Machine, ...]) -> None:
    options = StartOptions("cuda", False, cluster)
    assert [machine.ranks for machine in cluster] == [3, 3]
    assert list(nodes_of(3, options).values()) == [3]
    assert sorted(nodes_of(4, options).values()) in ([1, 3], [2, 2])


def test_an_excluded_machine_gets_no_rank(cluster: tuple[Machine, ...]) -> None:
    bad, good = cluster
    options = StartOptions("cuda", False, cluster, frozenset({bad.node}), room_within=5.0)
    assert nodes_of(3, options) == {good.node: 3}
    with pytest.raises(NoRoom, match=r"asked for 4 × .*GPU 6, without 1 excluded machines"):
        nodes_of(4, options)


def test_a_held_gpu_goes_to_nobody_else(cluster: tuple[Machine, ...]) -> None:
    machine = cluster[1]

    @ray.remote(num_gpus=1, num_cpus=0)
    class Other:
        def gpu(self) -> str:
            return ray.get_runtime_context().get_accelerator_ids()["GPU"][0]

    async def held() -> Any:
        return await hold_gpu(machine.node, "1")

    holder = asyncio.run(held())
    assert holder is not None
    others = [
        Other.options(label_selector={"ray.io/node-id": machine.node}).remote()  # type: ignore[attr-defined]
        for _ in range(2)
    ]
    assert sorted(ray.get([other.gpu.remote() for other in others], timeout=60)) == ["0", "2"]
    assert asyncio.run(hold_gpu(machine.node, "0", within=1.0)) is None  # it does not come free
    for actor in (holder, *others):
        ray.kill(actor)
