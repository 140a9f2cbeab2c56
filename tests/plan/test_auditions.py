"""Which takes of an audition are chosen."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_parallel.inputs.quality import Audition, audition_mistake
from lynx_parallel.plan.auditions import AuditionTake, choose, shown_similarity


def takes(*similarities: float | str | None) -> list[AuditionTake]:
    """Takes by their scores; None has no face, ``-`` no preview, ``+`` is finished or accepted, ``x`` rejected."""
    found = []
    for number, one in enumerate(similarities, 1):
        heard = one is None or isinstance(one, float)
        similarity = one if isinstance(one, float) else None
        found.append(AuditionTake(f"t{number}", number, heard, similarity, one == "+", one == "x"))
    return found


def chosen(candidates: list[AuditionTake], audition: Audition) -> str:
    """The verdicts in order: c, n or u."""
    verdicts = choose(candidates, audition)
    return "".join(verdicts[one.name][0] for one in candidates)


@pytest.mark.parametrize(
    ("similarities", "keep", "verdicts"),
    [
        ((0.1, 0.5, 0.3), 1, "ncn"),
        ((0.1, 0.5, 0.3), 2, "ncc"),
        ((0.1, "-", 0.3), 1, "uuu"),
        ((0.1, None, -0.3), 2, "cnc"),
        ((None, None, None), 1, "cnn"),
        ((0.5, 0.5, 0.5), 1, "cnn"),
        (("+", 0.5, 0.9), 1, "cnn"),
        (("+", 0.5, 0.9), 2, "cnc"),
        (("+", "-", 0.9), 1, "cnn"),
        (("+", "-", 0.9), 2, "cuu"),
        (("x", 0.1, 0.05), 1, "ncn"),
        (("+", "+", "+"), 1, "ccc"),
        (("x", "x", "x"), 1, "nnn"),
        ((0.1,), 1, "c"),
    ],
)
def test_by_score(similarities: tuple[float | str | None, ...], keep: int, verdicts: str) -> None:
    assert chosen(takes(*similarities), Audition(12, keep)) == verdicts


@pytest.mark.parametrize(
    ("similarities", "keep", "verdicts"),
    [
        ((0.1, 0.5, 0.3), 1, "uuu"),
        (("+", 0.5, 0.3), 1, "cnn"),
        (("+", 0.5, 0.3), 2, "cuu"),
        (("x", 0.5, "-"), 1, "nuu"),
    ],
)
def test_by_a_person(similarities: tuple[float | str | None, ...], keep: int, verdicts: str) -> None:
    assert chosen(takes(*similarities), Audition(12, keep, "person")) == verdicts


ONE = st.one_of(st.none(), st.floats(-1, 1), st.sampled_from(["-", "+", "x"]))


@given(st.lists(ONE, min_size=1, max_size=8), st.integers(1, 8), st.randoms(use_true_random=False))
def test_the_order_does_not_matter(similarities: list[float | str | None], keep: int, rng: random.Random) -> None:
    candidates, audition = takes(*similarities), Audition(12, keep)
    verdicts = choose(candidates, audition)
    shuffled = rng.sample(candidates, len(candidates))
    assert choose(shuffled, audition) == verdicts
    fixed = sum(one.chosen for one in candidates)
    assert sum(verdict == "chosen" for verdict in verdicts.values()) <= max(keep, fixed)
    if "undecided" not in verdicts.values():
        free = sum(not one.rejected for one in candidates)
        assert sum(verdict == "chosen" for verdict in verdicts.values()) == max(min(keep, free), fixed)


@pytest.mark.parametrize(
    ("audition", "takes", "line"),
    [
        (Audition(12, 1), 4, ""),
        (Audition(12, 1), 1, "needs several takes: give takes or seeds"),
        (Audition(12, 4), 4, "keep: 4 of 4 takes: leaves nothing to choose"),
        (Audition(50, 1), 4, "step: 50 of 50: must be below num_inference_steps"),
    ],
)
def test_mistakes(audition: Audition, takes: int, line: str) -> None:
    assert audition_mistake(audition, takes, 50) == line


def test_words() -> None:
    assert [shown_similarity(one) for one in (None, 0.0, 0.12345)] == ["no face", "identity 0.000", "identity 0.123"]
