"""Output names."""

from __future__ import annotations

import pytest

from lynx_parallel.inputs.names import folder_clash, name_mistake, pattern_mistake
from tests.helpers.manifests import BOTH, HEAD, Complain, Load

PROMPTS = "prompts: {p: x, q: y}\n"


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("{subject}/{prompt}-t{take:02}", "ada/p-t01"),
        ("{subject}{prompt}{take}_{seed}", "adap1_42"),
        ("{prompt}/{subject}/{seed:06d}", "p/ada/000042"),
        ("été/{subject}{prompt}{{x}}", "été/adap{x}"),
    ],
)
def test_patterns(load: Load, pattern: str, name: str) -> None:
    assert load(HEAD + BOTH + PROMPTS + f'name: "{pattern}"\n').shots[0].name == name


FIELDS = "allowed: subject, prompt, variant, take, seed"


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("{subjct}", f"{{subjct}}: unknown field; did you mean 'subject'? ({FIELDS})"),
        ("{}", f"{{}}: unknown field; {FIELDS}"),
        ("{subject.x}", f"{{subject.x}}: unknown field; did you mean 'subject'? ({FIELDS})"),
        ("{subject:>10}", "{subject}: takes no format"),
        ("{subject!r}", "{subject}: takes no format"),
        ("{take!s}", "{take}: a format is like {take:02}"),
        ("{take:1000000000}", "{take}: a format is like {take:02}"),
        ("{take:{seed}}", "{take}: a format is like {take:02}"),
        ("{take", "expected '}' before end of string: write {{ and }} for braces"),
    ],
)  # fmt: skip
def test_wrong_patterns(complain: Complain, pattern: str, said: str) -> None:
    assert pattern_mistake(pattern) == said
    assert complain(HEAD + BOTH + PROMPTS + f'name: "{pattern}"\n') == [f"m.yaml:6: name: {said}"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/a", "is absolute: names are relative to output"),
        ("a//b", "has an empty part"),
        ("a/", "has an empty part"),
        ("", "has an empty part"),
        ("a/ /b", "has an empty part"),
        ("../a", "has a part that starts with '.'"),
        ("a/../b", "has a part that starts with '.'"),
        (".lynx/a", "has a part that starts with '.'"),
        ("a/.b", "has a part that starts with '.'"),
        ("a\\b", "holds a backslash"),
        ("a\nb", "holds a control character"),
        ("a\x00b", "holds a control character"),
        ("a\x7fb", "holds a control character"),
        ("é" * 101, "has a part longer than 200 bytes"),
        ("/".join(["a" * 100] * 10), "is longer than 1000 bytes"),
        ("a.PART", "has a part that ends in '.part', which marks unfinished files"),
        ("a.part/b", "has a part that ends in '.part', which marks unfinished files"),
    ],
)
def test_wrong_names(name: str, said: str) -> None:
    assert name_mistake(name) == said


@pytest.mark.parametrize("name", ["a", "a/b", "a.b/c.mp4", "a" * 200, "a b", "é", "a..b", "lynx/x"])
def test_right_names(name: str) -> None:
    assert name_mistake(name) is None


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("/x/{subject}{prompt}", "'/x/adap' is absolute: names are relative to output (shot ada/p/1)"),
        ("../{subject}{prompt}", "'../adap' has a part that starts with '.' (shot ada/p/1)"),
        (
            "{subject}",
            "shots ada/p/1 and ada/q/1 get the same name 'ada'; use {take} or {seed}",
        ),
        ("x", "shots ada/p/1 and ada/q/1 get the same name 'x'; use {take} or {seed}"),
    ],
)
def test_names_of_shots(complain: Complain, pattern: str, said: str) -> None:
    assert complain(HEAD + BOTH + PROMPTS + f'name: "{pattern}"\n') == [f"m.yaml:6: name: {said}"]


def test_case_alone_is_no_difference(complain: Complain) -> None:
    for subject in ("aB", "ab"):
        text = HEAD + f"subjects: {{{subject}: {{embedding: faces/ada.npy}}, a: {{embedding: faces/ada.npy}}}}\n"
        text += "prompts: {p: x, Bp: y}\nname: '{subject}{prompt}'\n"
        text += f"shots: [{{subject: {subject}, prompt: p}}, {{subject: a, prompt: Bp}}]\n"
        assert complain(text) == [
            f"m.yaml:6: name: shots {subject}/p/1 and a/Bp/1 get the same name 'aBp'; use {{take}} or {{seed}}"
        ]


@pytest.mark.parametrize("suffix", [".mp4", ".json", ".latents.safetensors"])
def test_a_folder_named_like_a_file_of_no_shot(load: Load, suffix: str) -> None:
    subjects = f"subjects: {{a: {{embedding: faces/ada.npy}}, a{suffix}: {{embedding: faces/ada.npy}}}}\n"
    text = HEAD + subjects + "prompts: {p: x}\nname: '{subject}/{prompt}'\n"
    assert [s.name for s in load(text).shots] == ["a/p", f"a{suffix}/p"]


def test_folder_clash() -> None:
    names = {"a": 0, "b/c": 1}
    assert folder_clash("a.mp4/x", names) == 0
    assert folder_clash("b/c.latents.safetensors/x/y", names) == 1
    assert folder_clash("a/x", names) is None
    assert folder_clash("a.mp4", names) is None
    assert folder_clash("a.mp4.part/x", names) is None  # refused before: .part
