"""Number, size and memory footprint of a run's gangs. Imports neither torch nor Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lynx_parallel.engine.policy import Footprint, lighter
from lynx_parallel.inputs.cluster import ClusterSpec
from lynx_parallel.inputs.layout import Layout
from lynx_parallel.inputs.manifest import Shot
from lynx_parallel.plan.layout_choice import LayoutChoice
from lynx_parallel.rank.messages import Hello


class GangSizes:
    """Number and size of a run's gangs. They change when memory runs out or machines are lost.

    Attributes:
        footprint: of every gang from now on.
        size: ranks of a gang: as many as any shot's layout needs.
        gangs: how many there are.
        most: maximum number of ranks of all gangs together.
        experts: number of transformers of the base.

    Args:
        available: ranks that the cluster can hold.

    Raises:
        InputErrors, ClusterError: more asked for than the cluster can hold.
    """

    def __init__(
        self, layout_choice: LayoutChoice, cluster: ClusterSpec, shots: Sequence[Shot], device: str, available: int
    ):
        self._layout_choice = layout_choice
        self._shots = shots
        self.device = device
        self.experts = layout_choice.experts
        self.footprint = Footprint(
            cluster.shard_weights, layout_choice.ranks(device, available), cluster.tiled_decode, cluster.one_expert
        )  # fmt: skip
        self.most = layout_choice.most(device, available)
        self.size = self._largest()
        self.gangs = layout_choice.gangs(self.size, device, available, len(shots))

    def __str__(self) -> str:
        ranks = f"{self.size} rank{'s' * (self.size > 1)} on {self.device}"
        return ranks if self.gangs == 1 else f"{self.gangs} gangs of {ranks}"

    @property
    def grows_to(self) -> int:
        """Ranks that a shot may get."""
        return self.size if self._layout_choice.asked is not None else self.most

    def lighter(self) -> Footprint:
        """Returns the next footprint that needs less memory on a rank, or the current one if there is none."""
        return lighter(self.footprint, ranks=self.size, most=self.grows_to, experts=self.experts) or self.footprint

    def take(self, footprint: Footprint) -> bool:
        """Uses this footprint from now on. Gangs may become larger and fewer. Returns whether anything changed."""
        if footprint == self.footprint:
            return False
        self.footprint = footprint
        self.size = max(self.size, self._largest())
        self.gangs = min(self.gangs, self.most // self.size)
        return True

    def lose_gang(self) -> None:
        """Removes the ranks of one gang. No other gang may grow onto them."""
        self.most -= self.size

    def shrink(self, ranks: int) -> None:
        """Fits the gangs into the number of ranks that are left."""
        self.most = min(self.most, ranks)
        self.gangs = min(self.gangs, self.most // self.size)

    def _largest(self) -> int:
        return max(self._layout_choice.layout(shot, self.footprint.ranks).size for shot in self._shots)


def span(hellos: Sequence[Hello], breaks: Sequence[int], asked: Layout | None) -> str | None:
    """Returns a line on the machines that a gang spans and on what crosses the network, or None on one machine.

    Args:
        breaks: indexes of the ranks at which the next machine begins.
        asked: layout that the user asked for, or None.
    """
    if not breaks:
        return None
    parts = ", ".join(f"{host}: {count}" for host, count in Counter(hello.host for hello in hellos).items())
    how = "ring attention between machines, Ulysses within each"
    if asked is not None and asked.splits_ulysses(breaks):
        how = f"{asked} sends all-to-all over the network; a ring between machines is faster"
    return f"a gang spans several machines ({parts} ranks): {how}"
