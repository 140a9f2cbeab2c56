"""Places the ranks of a gang on the cluster's machines, with Ray's placement groups."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, NamedTuple

import ray
from ray.exceptions import GetTimeoutError
from ray.util import placement_group_table
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lynx_parallel.engine.policy import HUNG_AFTER_S
from lynx_parallel.engine.ray_results import answer
from lynx_parallel.errors import ClusterError, LynxError
from lynx_parallel.rank.messages import Check, Hello, Progress

_log = logging.getLogger(__name__)

CPUS_OF_A_CPU_RANK = 0.25
"""CPUs that Ray reserves for a rank on the CPU. Ranks share the real cores."""
ONE_MACHINE_WITHIN_S = 20.0
"""Seconds that a gang waits for room on one machine before it may span several."""
WAITING, STARTING, CHECKING, LOADING = "waiting for room", "starting ranks", "checking the ranks", "loading the weights"
"""Steps of a starting gang, for the user."""
_NODE_LABEL = "ray.io/node-id"


class NoRoom(ClusterError):
    """The cluster cannot hold the ranks, at least not now."""

    code = "LX207"


class UnfitRank(ClusterError):
    """A rank failed its self-check: its GPU or its machine cannot be used.

    Attributes:
        host: name of the machine.
        gpu: Ray's id of the GPU at fault; empty if the whole machine is at fault.
    """

    code = "LX209"

    def __init__(self, hello: Hello, check: Check):
        self.host = hello.host
        self.gpu = "" if check.name in ("output", "ffmpeg") else hello.gpu
        self.place = hello.place if self.gpu else hello.machine
        super().__init__(f"{self.where}: {check.name}: {check.detail.rstrip('.')}. {check.remedy}")

    @property
    def where(self) -> str:
        """Name of the machine, with the GPU if the GPU is at fault."""
        return f"{self.host}, GPU {self.gpu}" if self.gpu else self.host


class Machine(NamedTuple):
    """A machine of the cluster: Ray's id of it, its address, and how many ranks it can hold."""

    node: str
    address: str
    ranks: int


@dataclass(frozen=True)
class StartOptions:
    """How the gangs of a run are started.

    Attributes:
        device: ``cuda`` (one GPU a rank) or ``cpu``.
        local: all ranks are on this machine.
        machines: of the cluster.
        excluded: nodes on which no rank may run.
        gangs: number of gangs that share a machine's cores.
        hung_after: seconds without an answer after which a rank counts as hung, and the least limit of a step.
        room_within: seconds to wait for room.
        report: takes each step of a starting gang: ``WAITING``, ``STARTING``, ``CHECKING``, ``LOADING``.
        see: takes the progress of rank 0, every ``WATCH_EVERY_S``.
    """

    device: str
    local: bool
    machines: tuple[Machine, ...] = ()
    excluded: frozenset[str] = frozenset()
    gangs: int = 1
    hung_after: float = HUNG_AFTER_S
    room_within: float = 120.0
    report: Callable[[str], None] = field(default=lambda doing: None, compare=False)
    see: Callable[[Progress], None] = field(default=lambda progress: None, compare=False)

    @property
    def usable(self) -> tuple[Machine, ...]:
        """Machines on which ranks may run."""
        return tuple(machine for machine in self.machines if machine.node not in self.excluded)


class Placement(NamedTuple):
    """Room for a gang's ranks, one bundle each.

    Attributes:
        sharing: for each bundle, how many ranks share the cores of its machine.
    """

    group: PlacementGroup
    sharing: list[int]


def available(asked: str) -> tuple[str, tuple[Machine, ...]]:
    """Returns the device of the ranks, ``cuda`` or ``cpu``, and the machines that can hold at least one rank.

    Args:
        asked: ``auto``, ``cuda`` or ``cpu``.
    """
    device = asked if asked != "auto" else "cuda" if ray.cluster_resources().get("GPU", 0) >= 1 else "cpu"
    machines = []
    for node in ray.nodes():
        if node["Alive"]:
            resources = node["Resources"]
            ranks = resources.get("GPU", 0) if device == "cuda" else resources.get("CPU", 0) / CPUS_OF_A_CPU_RANK
            machines.append(Machine(node["NodeID"], node["NodeManagerAddress"], int(ranks)))
    return device, tuple(machine for machine in machines if machine.ranks)


def bundle_of(device: str) -> dict[str, float]:
    """Returns the resources of one rank."""
    return {"CPU": CPUS_OF_A_CPU_RANK} if device == "cpu" else {"CPU": 1, "GPU": 1}


async def place(size: int, options: StartOptions) -> Placement:
    """Reserves room for ``size`` ranks: on one machine if possible, else on several.

    Raises:
        NoRoom: the cluster has no room, or none within ``options.room_within``.
    """
    bundle = bundle_of(options.device)
    selector = {_NODE_LABEL: f"!in({','.join(sorted(options.excluded))})"} if options.excluded else None
    for strategy, within in _strategies(size, options):
        group = placement_group(
            [bundle] * size, strategy=strategy, bundle_label_selector=None if selector is None else [selector] * size
        )
        _log.debug(
            "placing %d × %s: %s, within %.0f s, excluded %s", size, bundle, strategy, within, set(options.excluded)
        )
        try:
            await asyncio.wait_for(answer(group.ready()), within)
            return Placement(group, _sharing(size, options, _nodes(group)))
        except (TimeoutError, GetTimeoutError):
            remove_placement_group(group)
        except BaseException:
            remove_placement_group(group)
            raise
    raise NoRoom(f"the cluster has no room: asked for {size} × {bundle}, it has {_resources(options)}")


def _strategies(size: int, options: StartOptions) -> list[tuple[str, float]]:
    """Returns Ray's strategies in the order in which they are tried, each with its seconds."""
    fits_one = any(machine.ranks >= size for machine in options.usable)
    if options.local or (fits_one and len(options.usable) == 1):
        return [("STRICT_PACK", options.room_within)]
    if not fits_one:
        return [("PACK", options.room_within)]
    first = min(ONE_MACHINE_WITHIN_S, options.room_within)
    return [("STRICT_PACK", first), ("PACK", options.room_within - first)]


def _nodes(group: PlacementGroup) -> list[str]:
    """Returns the node of each bundle."""
    nodes = placement_group_table(group)["bundles_to_node_id"]
    return [nodes[index] for index in sorted(nodes)]


def _sharing(size: int, options: StartOptions, nodes: Sequence[str]) -> list[int]:
    """Returns for each bundle how many ranks share the cores of its machine, those of other gangs included."""
    here = Counter(nodes)
    if options.device == "cuda":  # any GPU may get a rank later
        gpus = {machine.node: machine.ranks for machine in options.machines}
        return [max(gpus.get(node, 0), here[node]) for node in nodes]
    everywhere = ceil(size * options.gangs / max(1, len(options.usable)))
    return [max(here[node], everywhere) for node in nodes]


def _resources(options: StartOptions) -> str:
    found = ray.cluster_resources()
    total = ", ".join(f"{kind} {found.get(kind, 0):g}" for kind in ("CPU", "GPU"))
    return f"{total}, without {len(options.excluded)} excluded machines" if options.excluded else total


class _Holder:
    """An actor that only keeps a GPU from others."""

    def gpu(self) -> str:
        return next(iter(ray.get_runtime_context().get_accelerator_ids()["GPU"]), "")


async def hold_gpu(machine: str, gpu: str, within: float = 30.0) -> Any | None:
    """Takes a GPU out of the run, for as long as the returned actor lives.

    Ray cannot reserve a particular GPU. So actors take the machine's free GPUs until one of them has this GPU.

    Args:
        machine: Ray's id of the node.
        gpu: Ray's id of the GPU.
        within: seconds that an actor may wait for a free GPU.

    Returns:
        The actor, or None if the GPU did not become free.
    """
    holders: list[Any] = []
    found = None
    for _ in range(int(_gpus_of(machine))):
        holder = (
            ray.remote(num_gpus=1, num_cpus=0)(_Holder)
            .options(scheduling_strategy=NodeAffinitySchedulingStrategy(machine, soft=False))
            .remote()
        )
        holders.append(holder)
        try:
            held = await asyncio.wait_for(answer(holder.gpu.remote()), within)
        except (TimeoutError, LynxError):
            break
        if held == gpu:
            found = holder
            break
    for holder in holders:
        if holder is not found:
            ray.kill(holder, no_restart=True)
    return found


def _gpus_of(machine: str) -> float:
    return next((node["Resources"].get("GPU", 0) for node in ray.nodes() if node["NodeID"] == machine), 0)
