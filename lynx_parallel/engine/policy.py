"""Decides what follows a failed attempt: retry, smaller footprint, give up, stop. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from lynx_parallel.failures import Kind

MAX_ATTEMPTS = {"died": 4, "hung": 3, "memory": 5, "raised": 2, "subject": 1, "disk": 3, "withheld": 1}
BACKOFF_S = (1.0, 5.0, 30.0)
DISK_AGAIN_S = 120.0
"""Seconds until a retry after a full disk: somebody has to free space."""
MEMORY_AGAIN_S = 30.0
"""Seconds until a retry if no footprint needs less memory: another process may use it for a while."""
HUNG_AFTER_S = 60.0
FIRST_STEP = 10
AFTER_STEPS = 30


@dataclass(frozen=True)
class Footprint:
    """How a gang uses memory. Each further footprint needs less memory on a rank.

    Attributes:
        shard: whether the sequence ranks share one copy of the transformer.
        one_expert: whether a rank holds only one of two transformers at a time.
        ranks: maximum number of ranks of a shot.
        tiled_decode: whether videos are decoded tile by tile. This changes pixels, so it comes last.
    """

    shard: bool = False
    ranks: int = 1
    tiled_decode: bool = False
    one_expert: bool = False

    def __str__(self) -> str:
        words = {
            "one expert at a time": self.one_expert,
            "sharded weights": self.shard,
            f"{self.ranks} rank{'s' * (self.ranks > 1)} a shot": True,
            "tiled decoding": self.tiled_decode,
        }
        return ", ".join(word for word, holds in words.items() if holds)


@dataclass(frozen=True)
class Retry:
    """The shot is tried again, with the same seed and settings.

    Attributes:
        delay_s: seconds to wait.
        footprint: of all gangs that start from now on.
    """

    delay_s: float
    footprint: Footprint


@dataclass(frozen=True)
class GiveUp:
    """The shot has failed.

    Attributes:
        quarantine: whether all shots of its subject fail with it.
        stop: whether the run ends, because every other shot would fail in the same way.
    """

    quarantine: bool = False
    stop: bool = False


def decide(
    history: Sequence[Kind], footprint: Footprint, *, ranks: int = 1, most: int = 1, experts: int = 1
) -> Retry | GiveUp:
    """Returns what follows the failed attempts of one shot.

    Args:
        history: kind of each failed attempt, oldest first; not empty.
        footprint: of the last attempt.
        ranks: number of ranks that share the shot's tokens. Only several ranks can share weights.
        most: maximum number of ranks of a shot.
        experts: number of transformers of the base.
    """
    kind = history[-1]
    if kind == "subject":
        return GiveUp(quarantine=True)
    if kind == "memory" and (less := lighter(footprint, ranks=ranks, most=most, experts=experts)):
        return Retry(0.0, less)  # the number of footprints is finite
    if history.count(kind) >= MAX_ATTEMPTS[kind] or len(history) >= max(MAX_ATTEMPTS.values()):
        return GiveUp(stop=kind == "disk")
    if kind in ("memory", "disk"):
        return Retry(MEMORY_AGAIN_S if kind == "memory" else DISK_AGAIN_S, footprint)
    return Retry(BACKOFF_S[min(len(history), len(BACKOFF_S)) - 1], footprint)


def lighter(footprint: Footprint, *, ranks: int, most: int, experts: int = 1) -> Footprint | None:
    """Returns the next footprint that needs less memory on a rank, or None. Arguments are those of ``decide``.

    To move an expert costs seconds for each shot, sharding costs some of every step, so the former comes first.
    """
    if experts > 1 and not footprint.one_expert:
        return replace(footprint, one_expert=True)
    if ranks > 1 and not footprint.shard:
        return replace(footprint, shard=True)
    if 2 * footprint.ranks <= most:
        return replace(footprint, shard=True, ranks=2 * footprint.ranks)
    return None if footprint.tiled_decode else replace(footprint, tiled_decode=True)


def hung_after(step: int, total: int, step_seconds: Sequence[float], base_s: float = HUNG_AFTER_S) -> float:
    """Returns the seconds without a step after which a shot counts as hung.

    The first step, which chooses kernels and allocates buffers, and the work after the last step (decoding, encoding)
    have longer limits.

    Args:
        step_seconds: durations of the steps so far.
        base_s: least limit; ``--hung-after``.
    """
    if step >= total > 0:
        return AFTER_STEPS * base_s
    if not step_seconds:
        return FIRST_STEP * base_s
    return max(base_s, 10 * median(step_seconds))
