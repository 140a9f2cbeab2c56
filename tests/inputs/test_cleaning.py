"""The cleaned prompt is the one that the model has always seen."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_parallel.inputs.cleaning import clean_prompt

TEXTS = [
    "",
    "   \n\t ",
    "A woman walks.",
    "  A woman\r\n walks.\n\nSlowly \t and\u00a0on.  ",
    "fish &amp; chips, &amp;lt;b&amp;gt;, &nbsp;x",
    "a < b &amp;lt; c",  # ftfy leaves entities alone beside a "<"
    "schÃ¶n und âœ” und l’humanitÃ©",  # UTF-8 read as Latin-1: ftfy repairs it
    "ﬁne “quotes” … ＬＯＵＤ",
    "e\u0301 \u200b \ufeff \x1b[31mred\x1b[0m \x00 \u2028 \u0085",
    "漢字　かな 🙂\u200d",
    "&#x20;&#32;x&#10;",
]


def existing(text: str) -> str:
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    return prompt_clean(text)


@pytest.mark.parametrize("text", TEXTS)
def test_equals_diffusers(text: str) -> None:
    assert clean_prompt(text) == existing(text)


@given(st.text() | st.text(st.sampled_from("<&amp;lt#x20; \n\t\u00a0\u3000Ã©â€œ'a")))
def test_equals_diffusers_for_any_text(text: str) -> None:
    assert clean_prompt(text) == existing(text)


def test_repairs_and_collapses() -> None:
    assert clean_prompt("  schÃ¶n\r\n\n &amp;amp;\u00a0 x ") == "schön & x"


def test_imports_no_torch() -> None:
    code = "import sys; from lynx_parallel.inputs.cleaning import clean_prompt; clean_prompt('a'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "ftfy" in loaded
    assert not {"torch", "diffusers", "transformers", "ray"} & set(loaded)
