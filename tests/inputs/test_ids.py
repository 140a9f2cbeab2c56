"""Ids made from file names and texts."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_parallel.inputs.entries import ID
from lynx_parallel.inputs.ids import digits, free_id, made_id, prompt_id


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("ada", "ada"),
        ("Ada.v2_final-3", "Ada.v2_final-3"),
        ("Porträt Nr 3", "Portrat-Nr-3"),
        (unicodedata.normalize("NFD", "Porträt Nr 3"), "Portrat-Nr-3"),
        ("_DSC 0001 (1)", "DSC-0001-1"),
        ("Łukasz Straße ærø", "Lukasz-Strasse-aero"),
        ("Anna & Bob", "Anna-Bob"),
        ("张伟", digits("张伟")),
        ("张伟 2026", "2026-" + digits("张伟 2026")),
        (unicodedata.normalize("NFD", "김철수 2"), "2-" + digits("김철수 2")),
        ("!!!", digits("!!!")),
        ("x" * 200, "x" * 91 + "-" + digits("x" * 200)),
    ],
)
def test_made_ids(name: str, made: str) -> None:
    assert made_id(name) == made


@given(st.text())
def test_what_is_made_is_an_id(text: str) -> None:
    assert ID.fullmatch(made_id(text))
    assert made_id(made_id(text)) == made_id(text)
    assert ID.fullmatch(prompt_id(text.replace("{", "").replace("}", "")))


def test_ids_of_texts() -> None:
    text = "A {person|woman} carves a pumpkin on a porch, in the évening."
    assert prompt_id(text) == "a-person-carves-a-pumpkin-on-a-porch-in-" + digits(text)
    assert prompt_id("Á") == "a-" + digits("Á")
    assert prompt_id("走") == "p-" + digits("走")


def test_free_ids() -> None:
    taken: set[str] = set()
    names = ["ada", "Ada", "ada", "ada-2", "x.part", "ä" * 3, "y" * 100, "Y" * 100]
    made = [free_id(name, taken) for name in names]
    assert made == ["ada", "Ada-2", "ada-3", "ada-2-2", "x-part", "aaa", "y" * 100, "Y" * 98 + "-2"]
    assert taken == {one.casefold() for one in made}
