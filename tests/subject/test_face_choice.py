"""Which of the faces found is the subject's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lynx_parallel.errors import SubjectError
from lynx_parallel.subject.detection import Face, choose_face


def face(left: float, size: float, score: float = 0.9, top: float = 0) -> Face:
    return Face(np.zeros((5, 2), np.float32), (left, top, left + size, top + size), score)


SMALL, LARGE, MIDDLE = face(50, 10, 0.99), face(20, 30, 0.7), face(0, 18)
THREE = [SMALL, LARGE, MIDDLE]


def test_one_face_is_taken_without_a_word() -> None:
    for choice in ("largest", "only", 1):
        assert choose_face([LARGE], choice, "ada.jpg") == (LARGE, None)


def test_the_largest_is_taken_with_a_warning() -> None:
    chosen, warning = choose_face(THREE, "largest", "ada.jpg")
    assert chosen is LARGE
    assert warning == "ada.jpg: 3 faces found, took the largest, number 2 from the left"


def test_of_two_as_large_the_surer_one() -> None:
    sure, unsure = face(40, 20, 0.9), face(0, 20, 0.6)
    assert choose_face([unsure, sure], "largest", "")[0] is sure
    assert choose_face([sure, unsure], "largest", "")[0] is sure


def test_counting_goes_from_left_to_right() -> None:
    assert [choose_face(THREE, n, "ada.jpg") for n in (1, 2, 3)] == [(MIDDLE, None), (LARGE, None), (SMALL, None)]
    lower, upper = face(0, 10, top=40), face(0, 10, top=5)
    assert choose_face([lower, upper], 1, "")[0] is upper


@pytest.mark.parametrize("choice", ["largest", "only", 1])
def test_no_face_names_the_picture_and_what_to_do(choice: Any) -> None:
    with pytest.raises(SubjectError, match=r"^faces/ada\.jpg: no face found: use a picture .* 256 pixels"):
        choose_face([], choice, "faces/ada.jpg")


def test_only_takes_no_second_face() -> None:
    for count in (2, 3):
        with pytest.raises(SubjectError, match=rf"^ada\.jpg: {count} faces found, one alone is allowed"):
            choose_face(THREE[:count], "only", "ada.jpg")


@pytest.mark.parametrize("number", [0, -1, 4])
def test_a_number_out_of_range(number: int) -> None:
    with pytest.raises(SubjectError, match=rf"^ada\.jpg: face {number} from the left: 3 faces found"):
        choose_face(THREE, number, "ada.jpg")


@pytest.mark.parametrize("choice", ["smallest", True, 1.0, None])
def test_other_policies_are_refused(choice: Any) -> None:
    with pytest.raises(ValueError, match="choice"):
        choose_face(THREE, choice, "ada.jpg")
