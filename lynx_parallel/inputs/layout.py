"""The layout of a gang: degrees of guidance, ring and Ulysses. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil

from lynx_parallel.errors import InputErrors


@dataclass(frozen=True)
class Needs:
    """Requirements of a shot on its layout.

    Attributes:
        heads: attention heads of the model.
        tokens: of the shot's latents.
        branches: guidance branches with a weight.
    """

    heads: int
    tokens: int
    branches: int


@dataclass(frozen=True, order=True)
class Layout:
    """Degrees of a gang's three axes; the gang has ``size`` ranks.

    Ranks are numbered guidance-major, then ring, then Ulysses, so that a Ulysses group, which talks
    the most, is contiguous: within a node wherever it fits.

    Attributes:
        guidance: branches computed side by side.
        ring: ring-attention degree of the sequence.
        ulysses: all-to-all degree of the sequence; must divide the attention heads.
    """

    guidance: int = 1
    ring: int = 1
    ulysses: int = 1

    @property
    def sequence(self) -> int:
        """Ranks over which the token axis is split."""
        return self.ring * self.ulysses

    @property
    def size(self) -> int:
        return self.guidance * self.sequence

    def shard(self, tokens: int) -> int:
        """Tokens of one rank: ⌈N / (ring · ulysses)⌉; the last rank's may hold padding."""
        return ceil(tokens / self.sequence)

    def splits_ulysses(self, breaks: Sequence[int]) -> bool:
        """Returns whether a Ulysses group would span several machines.

        Args:
            breaks: indexes of the ranks at which the next machine begins.
        """
        return any(rank % self.ulysses for rank in breaks if rank < self.size)

    def check(self, needs: Needs) -> None:
        """Checks that a shot can run in this layout.

        Raises:
            InputErrors: one line saying what does not fit and what would.
        """
        heads, tokens, branches = needs.heads, needs.tokens, needs.branches
        if heads % self.ulysses:
            fitting = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
            raise InputErrors(
                [f"--ulysses {self.ulysses}: does not divide the model's {heads} attention heads; one of {fitting}"]
            )
        if self.guidance > branches:
            raise InputErrors([f"--guidance {self.guidance}: the shot has {branches} guidance branches; at most that"])
        if self.shard(tokens) * (self.sequence - 1) >= tokens:
            raise InputErrors(
                [
                    f"--ring {self.ring} --ulysses {self.ulysses}: {tokens} tokens over {self.sequence} ranks "
                    f"would leave a rank with nothing but padding; use fewer ranks or a larger video"
                ]
            )

    def __str__(self) -> str:
        axes = {"guidance": self.guidance, "ring": self.ring, "Ulysses": self.ulysses}
        return " × ".join(f"{name} {degree}" for name, degree in axes.items() if degree > 1) or "one rank"


def choose_layout(needs: Needs, ranks: int, breaks: tuple[int, ...] = ()) -> Layout:
    """Returns the layout of at most this many ranks that fits a shot best, if none was requested.

    It uses as many ranks as fit. Ulysses comes first, because it is exact and sends least. Guidance takes the ranks
    that Ulysses cannot use. A ring is used only between machines, where all-to-all is slow. Each Ulysses group then
    stays within one machine.

    Args:
        breaks: indexes of the ranks at which the next machine begins; empty on one machine.
    """
    for size in range(ranks, 1, -1):
        spans = any(rank < size for rank in breaks)
        for guidance, ring in product((1, 2, 3), range(1, size + 1) if spans else (1,)):
            layout = Layout(guidance, ring, size // (guidance * ring))
            if layout.size == size and not layout.splits_ulysses(breaks) and _fits(layout, needs):
                return layout
    return Layout()


def _fits(layout: Layout, needs: Needs) -> bool:
    try:
        layout.check(needs)
    except InputErrors:
        return False
    return True
