"""Decisions after failures: pure, so tested without a cluster."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_parallel.gang.policy import (
    AFTER_STEPS_S,
    FIRST_STEP_S,
    HUNG_AFTER_S,
    GiveUp,
    Kind,
    Plan,
    Retry,
    decide,
    hung_after,
)

KINDS: list[Kind] = ["subject", "died", "raised", "hung", "memory"]


def test_a_subject_is_never_retried() -> None:
    assert decide(["subject"], Plan()) == GiveUp(quarantine=True)
    assert decide(["died", "subject"], Plan()) == GiveUp(quarantine=True)


def test_out_of_memory_changes_the_plan_until_none_is_left() -> None:
    assert decide(["memory"], Plan(), ranks=2) == Retry(0.0, Plan(shard=True))
    assert decide(["memory"] * 2, Plan(shard=True), ranks=2) == Retry(0.0, Plan(shard=True, tiled_decode=True))
    assert decide(["memory"] * 3, Plan(shard=True, tiled_decode=True), ranks=2) == GiveUp()
    assert decide(["memory"], Plan(), ranks=1) == Retry(0.0, Plan(tiled_decode=True))


def test_deaths_are_retried_later_and_later() -> None:
    delays = [decide(["died"] * n, Plan()) for n in (1, 2, 3)]
    assert delays == [Retry(1.0, Plan()), Retry(5.0, Plan()), Retry(30.0, Plan())]
    assert decide(["died"] * 4, Plan()) == GiveUp()


@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=30), st.integers(1, 8))
def test_attempts_are_bounded_whatever_happens(outcomes: list[Kind], ranks: int) -> None:
    """A shot ends: done, or given up after few attempts; the plan only ever asks for less memory."""
    plan, history = Plan(), []
    for outcome in outcomes:
        history.append(outcome)
        decision = decide(history, plan, ranks=ranks)
        if isinstance(decision, GiveUp):
            assert decision.quarantine == (outcome == "subject")
            return
        assert decision.plan.shard >= plan.shard
        assert decision.plan.tiled_decode >= plan.tiled_decode
        assert (decision.plan != plan) == (outcome == "memory")
        assert 0 <= decision.delay_s <= 30
        plan = decision.plan
    assert len(history) <= 5


@pytest.mark.parametrize(
    ("step", "total", "steps", "limit"),
    [
        (0, 50, [], FIRST_STEP_S),
        (1, 50, [2.0], HUNG_AFTER_S),
        (9, 50, [8.0, 9.0, 200.0], 90.0),
        (50, 50, [8.0], AFTER_STEPS_S),
        (0, 0, [], FIRST_STEP_S),
    ],
)
def test_what_counts_as_hung(step: int, total: int, steps: list[float], limit: float) -> None:
    assert hung_after(step, total, steps) == limit
