"""Texts and paths of a manifest that ``init`` writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_parallel.inputs.new_manifest import relative, yaml_text
from lynx_parallel.inputs.problems import Problems
from lynx_parallel.inputs.yaml_lines import read_yaml


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40))
def test_any_text_is_read_back(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "text.yaml"
    scalar = yaml_text(text)
    assert "\n" not in scalar
    file.write_text(f"a: {scalar}\nb: {{c: {scalar}}}\n", encoding="utf-8", newline="")
    problems = Problems()
    document = read_yaml(file, problems)
    problems.raise_if_any()
    assert document
    assert document.data == {"a": text, "b": {"c": text}}


@pytest.mark.parametrize("text", ["no", "1", "1e-3", ".5", "2027-01-31", "null", "~", "0x1f", "1_000", "12:30", ".nan"])
def test_text_that_looks_like_another_type(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.yaml").write_text(f"a: {yaml_text(text)}\n")
    document = read_yaml(tmp_path / "t.yaml", Problems())
    assert document
    assert document.data == {"a": text}


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert relative("faces/a.png", Path()) == "faces/a.png"
    assert relative("faces/a.png", Path("jobs")) == "../faces/a.png"
    assert relative("~a/b.png", Path()) == "./~a/b.png"
    assert relative("2027", Path()) == "./2027"
