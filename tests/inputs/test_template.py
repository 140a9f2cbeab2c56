"""Fields of prompts and their defaults."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_parallel.inputs.notices import Notice
from lynx_parallel.inputs.template import fill, template_mistake, template_words, unknown_vars
from tests.helpers.manifests import ADA, BOTH, HEAD, Complain, Load


@given(st.text("{}ab !:|.[]", max_size=12))
def test_plain_fields_and_braces_mean_what_str_format_means(text: str) -> None:
    """Prompts that were right before defaults existed keep their text."""
    if template_mistake(text) or "|" in text:
        return
    values = dict.fromkeys(unknown_vars(text, {}), "X{a}")
    assert fill(text, values) == text.format_map(values)


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("A {person|person} runs.", "A person runs."),
        ("{a|}{b|12:30!}{{c|d}}", "12:30!{c|d}"),
        ("{hat|red|blue} {x|X}", "red|blue x"),
    ],
)
def test_defaults(text: str, filled: str) -> None:
    assert template_mistake(text) is None
    assert fill(text, {"x": "x"}) == filled
    assert unknown_vars(text, {}) == []


def test_words_of_a_template() -> None:
    assert template_words("A {person|woman} in {{braces}}") == "A person in {braces}"


def test_the_nearest_value_wins(load: Load) -> None:
    """Subject, then the manifest's vars, then the prompt's default."""
    prompts = "prompts: {p: 'A {person|person} in a {hat|cap} with a {dog|dog}.'}\n"
    text = HEAD + "vars: {person: somebody, hat: crown}\n" + ADA + prompts
    assert load(text).shots[0].text == "A woman in a crown with a dog."
    assert load(text.replace("person: woman", "hat: ''")).shots[0].text == "A somebody in a  with a dog."


def test_wrong_vars_at_the_top(complain: Complain) -> None:
    assert complain(HEAD + "vars: {a b: x, c: 3}\n" + ADA + "prompts: {p: x}\n") == [
        'm.yaml:4: vars.c: 3: must be text; quote it: "3"',
    ]
    (line,) = complain(HEAD + "vars: {a b: x}\n" + ADA + "prompts: {p: x}\n")
    assert line.startswith("m.yaml:4: vars.'a b': 'a b': a var's name is a letter")


def test_a_misspelt_var_beside_a_default_is_reported(load: Load, folder: Path) -> None:
    """Without the default this is an error; the default would hide it."""
    prompts = "prompts: {p: 'A {person|person} runs.', q: '{size|small}'}\n"
    campaign = load(HEAD + BOTH.replace("person: woman", "persn: woman") + prompts)
    assert campaign.shots[0].text == "A person runs."
    message = "a prompt's default was used where a var has a similar name; correct the var's name"
    assert campaign.notices == (Notice("default-used", message, "{person} in p, 'persn' of ada"),)
