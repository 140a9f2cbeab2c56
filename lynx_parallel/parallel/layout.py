"""Layout(guidance, ring, ulysses): which rank holds what. Pure; imports neither torch nor Ray."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from lynx_parallel.errors import InputErrors


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

    def check(self, *, heads: int, tokens: int, branches: int) -> None:
        """Whether a shot of this many guidance branches and tokens can run in this layout.

        Args:
            heads: attention heads of the model.
            branches: guidance branches with a weight.

        Raises:
            InputErrors: one line saying what does not fit and what would.
        """
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
