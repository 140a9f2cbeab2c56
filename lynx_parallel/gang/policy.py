"""What to do after a failed attempt: retry, another plan, give up, stop. Pure; imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

Kind = Literal["subject", "died", "raised", "hung", "memory"]
"""Of a failure: a subject that cannot be used; a rank that died, raised, hung, or ran out of memory."""

MAX_ATTEMPTS = {"died": 4, "hung": 3, "memory": 4, "raised": 2, "subject": 1}
BACKOFF_S = (1.0, 5.0, 30.0)
HUNG_AFTER_S = 60.0
FIRST_STEP_S = 600.0
AFTER_STEPS_S = 1800.0


@dataclass(frozen=True)
class Plan:
    """Ways to need less memory, in the order in which they are tried."""

    shard: bool = False
    tiled_decode: bool = False


@dataclass(frozen=True)
class Retry:
    """Try the shot again, never with another seed or setting.

    Attributes:
        delay_s: not before so many seconds.
        plan: with this plan from now on.
    """

    delay_s: float
    plan: Plan


@dataclass(frozen=True)
class GiveUp:
    """The shot has failed; ``quarantine``: all of its subject's shots with it."""

    quarantine: bool = False


def decide(history: Sequence[Kind], plan: Plan, *, ranks: int = 1) -> Retry | GiveUp:
    """What follows the attempts of one shot.

    Args:
        history: how each attempt so far failed, oldest first; not empty.
        plan: of the last one.
        ranks: that share a shot's tokens; alone, a rank has no one to share its weights with.
    """
    kind = history[-1]
    if kind == "subject":
        return GiveUp(quarantine=True)
    if history.count(kind) >= MAX_ATTEMPTS[kind] or len(history) >= max(MAX_ATTEMPTS.values()) + 1:
        return GiveUp()
    if kind == "memory":
        if not plan.shard and ranks > 1:
            return Retry(0.0, Plan(shard=True, tiled_decode=plan.tiled_decode))
        if not plan.tiled_decode:
            return Retry(0.0, Plan(shard=plan.shard, tiled_decode=True))
        return GiveUp()
    return Retry(BACKOFF_S[min(len(history), len(BACKOFF_S)) - 1], plan)


def hung_after(step: int, total: int, step_seconds: Sequence[float]) -> float:
    """Seconds without a step after which a shot hangs.

    The first step (kernels are chosen, buffers made) and what follows the last (decoding, encoding) have limits of
    their own.

    Args:
        step_seconds: of the steps so far.
    """
    if step >= total > 0:
        return AFTER_STEPS_S
    if not step_seconds:
        return FIRST_STEP_S
    return max(HUNG_AFTER_S, 10 * median(step_seconds))
