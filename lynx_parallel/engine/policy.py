"""What to do after a failed attempt: retry, another footprint, give up, stop. Pure; imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from lynx_parallel.failures import Kind

MAX_ATTEMPTS = {"died": 4, "hung": 3, "memory": 5, "raised": 2, "subject": 1, "disk": 3}
BACKOFF_S = (1.0, 5.0, 30.0)
DISK_AGAIN_S = 120.0
"""Someone has to make room on a full disk."""
MEMORY_AGAIN_S = 30.0
"""Where no footprint needs less: another process may have taken the memory for a while."""
HUNG_AFTER_S = 60.0
FIRST_STEP = 10
AFTER_STEPS = 30


@dataclass(frozen=True)
class Footprint:
    """What a gang takes of its machines; each next one needs less memory on a rank.

    Attributes:
        shard: its sequence ranks share one copy of the transformer.
        ranks: that a shot may have.
        tiled_decode: decodes tile by tile; alone in this it changes pixels, so it comes last.
    """

    shard: bool = False
    ranks: int = 1
    tiled_decode: bool = False

    def __str__(self) -> str:
        words = {
            "sharded weights": self.shard,
            f"{self.ranks} rank{'s' * (self.ranks > 1)} a shot": True,
            "tiled decoding": self.tiled_decode,
        }
        return ", ".join(word for word, holds in words.items() if holds)


@dataclass(frozen=True)
class Retry:
    """Try the shot again, never with another seed or setting.

    Attributes:
        delay_s: not before so many seconds.
        footprint: of all gangs from now on.
    """

    delay_s: float
    footprint: Footprint


@dataclass(frozen=True)
class GiveUp:
    """The shot has failed.

    Attributes:
        quarantine: all of its subject's shots with it.
        stop: the whole run, as every other shot would fail in the same way.
    """

    quarantine: bool = False
    stop: bool = False


def decide(history: Sequence[Kind], footprint: Footprint, *, ranks: int = 1, most: int = 1) -> Retry | GiveUp:
    """What follows the attempts of one shot.

    Args:
        history: how each attempt so far failed, oldest first; not empty.
        footprint: of the last one.
        ranks: that shared the shot's tokens; alone, a rank has no one to share its weights with.
        most: ranks that a shot may get.
    """
    kind = history[-1]
    if kind == "subject":
        return GiveUp(quarantine=True)
    if kind == "memory" and (less := lighter(footprint, ranks=ranks, most=most)):
        return Retry(0.0, less)  # there are only so many
    if history.count(kind) >= MAX_ATTEMPTS[kind] or len(history) >= max(MAX_ATTEMPTS.values()):
        return GiveUp(stop=kind == "disk")
    if kind in ("memory", "disk"):
        return Retry(MEMORY_AGAIN_S if kind == "memory" else DISK_AGAIN_S, footprint)
    return Retry(BACKOFF_S[min(len(history), len(BACKOFF_S)) - 1], footprint)


def lighter(footprint: Footprint, *, ranks: int, most: int) -> Footprint | None:
    """The next footprint that needs less memory on a rank; None where there is none. Arguments as of ``decide``."""
    if ranks > 1 and not footprint.shard:
        return replace(footprint, shard=True)
    if 2 * footprint.ranks <= most:
        return replace(footprint, shard=True, ranks=2 * footprint.ranks)
    return None if footprint.tiled_decode else replace(footprint, tiled_decode=True)


def hung_after(step: int, total: int, step_seconds: Sequence[float], base_s: float = HUNG_AFTER_S) -> float:
    """Seconds without a step after which a shot hangs.

    The first step (kernels are chosen, buffers made) and what follows the last (decoding, encoding) have limits of
    their own.

    Args:
        step_seconds: of the steps so far.
        base_s: the least limit, of steps; ``--hung-after``.
    """
    if step >= total > 0:
        return AFTER_STEPS * base_s
    if not step_seconds:
        return FIRST_STEP * base_s
    return max(base_s, 10 * median(step_seconds))
