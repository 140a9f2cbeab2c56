"""How well the score of an audition foretells the score of the finished video, over all runs of this machine's user.

Each finished take of an audition adds a line to ``early-scores.jsonl`` in the cache folder. Only chosen takes are
finished, so that the pairs are of the better previews: the correlation over all takes would be higher. Imports neither
torch nor Ray.
"""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lynx_parallel.errors import ClusterError
from lynx_parallel.inputs.cache_root import cache_root

LEAST_PAIRS = 3
"""Pairs from which a correlation is shown."""


@dataclass(frozen=True)
class Pair:
    """The early and the final score of one take.

    Attributes:
        base: of the model.
        step, total: step of the preview, and all steps.
        digest: of the take, so that a take counts once.
    """

    recognizer: str
    base: str
    step: int
    total: int
    early: float
    final: float
    digest: str


@dataclass(frozen=True)
class Correlation:
    """The correlation of early and final scores at one step.

    Attributes:
        value: Pearson's; None if all scores of one kind are equal.
        pairs: number of takes.
    """

    recognizer: str
    base: str
    step: int
    total: int
    value: float | None
    pairs: int

    def __str__(self) -> str:
        value = "none" if self.value is None else f"{self.value:.2f}"
        return (
            f"correlation of early and final scores at step {self.step} of {self.total} by {self.recognizer}: {value} "
            f"over {self.pairs} chosen takes"
        )


def store() -> Path:
    """Returns the file of the pairs."""
    return cache_root() / "early-scores.jsonl"


def record_pair(pair: Pair) -> None:
    """Adds a pair. An error, such as a full disk, loses it."""
    with contextlib.suppress(OSError, ClusterError):
        store().parent.mkdir(parents=True, exist_ok=True)
        with store().open("a") as file:  # one short line: whole, also if several processes write
            file.write(json.dumps(asdict(pair)) + "\n")


def read_pairs() -> Iterator[Pair]:
    """Yields the pairs, each take once. Skips lines that cannot be read."""
    found: dict[tuple[str, str, int], Pair] = {}
    with contextlib.suppress(OSError, ClusterError), store().open() as file:
        for line in file:
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                pair = Pair(**json.loads(line))
                found[pair.digest, pair.recognizer, pair.step] = pair
    yield from found.values()


def correlations() -> list[Correlation]:
    """Returns the correlation at each step of which there are enough pairs."""
    groups: dict[tuple[str, str, int, int], list[Pair]] = {}
    for pair in read_pairs():
        groups.setdefault((pair.recognizer, pair.base, pair.step, pair.total), []).append(pair)
    return [
        Correlation(*key, _pearson([one.early for one in pairs], [one.final for one in pairs]), len(pairs))
        for key, pairs in sorted(groups.items())
        if len(pairs) >= LEAST_PAIRS
    ]


def _pearson(early: list[float], final: list[float]) -> float | None:
    try:
        return round(statistics.correlation(early, final), 3)
    except statistics.StatisticsError:  # all values are equal
        return None
