"""Decisions after failures: pure, so tested without a cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_parallel.engine.policy import (
    AFTER_STEPS,
    FIRST_STEP,
    HUNG_AFTER_S,
    Footprint,
    GiveUp,
    Kind,
    Retry,
    decide,
    hung_after,
)

KINDS: list[Kind] = ["subject", "died", "raised", "hung", "memory", "disk"]


def test_a_subject_is_never_retried() -> None:
    assert decide(["subject"], Footprint()) == GiveUp(quarantine=True)
    assert decide(["died", "subject"], Footprint()) == GiveUp(quarantine=True)


def test_out_of_memory_takes_less_until_there_is_no_less() -> None:
    """Weights shared, then more ranks, then tiled decoding, which alone changes pixels."""
    two, four = Footprint(shard=True, ranks=2), Footprint(shard=True, ranks=4)
    tiled = Footprint(shard=True, ranks=4, tiled_decode=True)
    assert decide(["memory"], Footprint(ranks=2), ranks=2, most=4) == Retry(0.0, two)
    assert decide(["memory"] * 2, two, ranks=2, most=4) == Retry(0.0, four)
    assert decide(["memory"] * 3, four, ranks=4, most=4) == Retry(0.0, tiled)
    sixteen = Footprint(shard=True, ranks=16)
    assert decide(["died"] + ["memory"] * 5, sixteen, ranks=16, most=16) == Retry(
        0.0, replace(sixteen, tiled_decode=True)
    )
    assert decide(["memory"] * 4, tiled, ranks=4, most=4) == Retry(30.0, tiled)  # who took it may give it back
    assert decide(["memory"] * 5, tiled, ranks=4, most=4) == GiveUp()
    assert decide(["memory"], Footprint(), ranks=1, most=2) == Retry(0.0, two)
    assert decide(["memory"], Footprint(), ranks=1, most=1) == Retry(0.0, Footprint(tiled_decode=True))
    assert decide(["memory"], tiled, ranks=4, most=4) == Retry(30.0, tiled)


def test_deaths_are_retried_later_and_later() -> None:
    delays = [decide(["died"] * n, Footprint()) for n in (1, 2, 3)]
    assert delays == [Retry(1.0, Footprint()), Retry(5.0, Footprint()), Retry(30.0, Footprint())]
    assert decide(["died"] * 4, Footprint()) == GiveUp()


def test_a_disk_that_stays_full_ends_the_run() -> None:
    assert decide(["disk"] * 2, Footprint()) == Retry(120.0, Footprint())
    assert decide(["disk"] * 3, Footprint()) == GiveUp(stop=True)


@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=30), st.integers(1, 8), st.integers(1, 16))
def test_attempts_are_bounded_whatever_happens(outcomes: list[Kind], ranks: int, most: int) -> None:
    """A shot ends: done, or given up after few attempts; gangs only ever take less memory."""
    footprint, history, lighter = Footprint(ranks=ranks), [], 0
    for outcome in outcomes:
        history.append(outcome)
        decision = decide(history, footprint, ranks=ranks, most=most)
        if isinstance(decision, GiveUp):
            assert decision.quarantine == (outcome == "subject")
            assert not decision.stop or outcome == "disk"
            return
        less = decision.footprint
        assert less.shard >= footprint.shard
        assert footprint.ranks <= less.ranks <= max(most, ranks)
        assert less.tiled_decode >= footprint.tiled_decode
        assert outcome == "memory" or less == footprint
        assert 0 <= decision.delay_s <= 120
        lighter += less != footprint
        footprint = less
    assert lighter <= 6  # shared weights, ranks doubled four times, tiles
    assert len(history) <= 4 + lighter


@pytest.mark.parametrize(
    ("step", "total", "steps", "limit"),
    [
        (0, 50, [], FIRST_STEP * HUNG_AFTER_S),
        (1, 50, [2.0], HUNG_AFTER_S),
        (9, 50, [8.0, 9.0, 200.0], 90.0),
        (50, 50, [8.0], AFTER_STEPS * HUNG_AFTER_S),
        (0, 0, [], FIRST_STEP * HUNG_AFTER_S),
    ],
)
def test_what_counts_as_hung(step: int, total: int, steps: list[float], limit: float) -> None:
    assert hung_after(step, total, steps) == limit


def test_the_base_is_the_users() -> None:
    assert [hung_after(step, 50, [0.1] * step, 5.0) for step in (0, 1, 50)] == [50.0, 5.0, 150.0]


def test_two_experts_are_first_held_one_at_a_time() -> None:
    """To move one takes seconds of a shot. Sharding costs some of every step."""
    footprint = Footprint(ranks=2)
    retry = decide(["memory"], footprint, ranks=2, most=4, experts=2)
    assert retry == Retry(0.0, Footprint(ranks=2, one_expert=True))
    retry = decide(["memory"] * 2, retry.footprint, ranks=2, most=4, experts=2)
    assert retry == Retry(0.0, Footprint(shard=True, ranks=2, one_expert=True))
    assert str(retry.footprint) == "one expert at a time, sharded weights, 2 ranks a shot"
