"""Which texts the text encoder cuts, and where: as transformers' own tokenizer does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lynx_parallel.errors import CheckpointError
from lynx_parallel.plan.prompt_length import MAX_TOKENS, Cut, find_cuts, may_be_too_long

WORDS = " ".join(f"word{number}" for number in range(120))
GERMAN = " ".join(["schön"] * 150)
CHINESE = "一位女子在海边行走" * 40
EMOJI = "🙂 " * 200


@pytest.fixture(params=["PreTrainedTokenizerFast", "T5TokenizerFast"])
def tokenizer(demo: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The demo's tokenizer, under the class that it names and under the one that Wan's names."""
    folder = tmp_path / "tokenizer"
    shutil.copytree(demo / "wan" / "tokenizer", folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": request.param}))
    return folder


@pytest.mark.parametrize("text", [WORDS, GERMAN, CHINESE, EMOJI, f"  {WORDS}\n\n &amp; more  "])
def test_what_is_lost_is_what_transformers_cuts(tokenizer: Path, text: str) -> None:
    """The model reads the same tokens of the text without what was lost, except for a word that is cut in two."""
    from transformers import AutoTokenizer

    from lynx_parallel.inputs.cleaning import clean_prompt

    theirs = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    cleaned = clean_prompt(text)
    whole = theirs(cleaned).input_ids
    read = theirs(cleaned, max_length=MAX_TOKENS, truncation=True).input_ids
    cut = find_cuts(tokenizer, [text]).get(text)
    if len(whole) <= MAX_TOKENS:
        assert cut is None
        return
    assert cut is not None
    assert cut.tokens == len(whole)
    lost = cut.lost.removeprefix("…")
    assert cleaned.endswith(lost)
    kept = theirs(cleaned[: -len(lost)].rstrip()).input_ids[:-1]
    assert kept == read[: len(kept)]
    assert len(kept) >= MAX_TOKENS - 1 - 10


def test_just_long_enough(demo: Path) -> None:
    """The demo's tokenizer makes one token of each character, one of each space, and adds two."""
    texts = ["é " + "x" * length for length in (506, 507, 508, 509)]
    cuts = find_cuts(demo / "wan" / "tokenizer", texts)
    assert [cuts.get(text) and cuts[text].tokens for text in texts] == [None, None, 513, 514]
    run = "é " + "x" * 520  # of it, the model reads the space, é in two bytes, the space, and 507 letters
    assert find_cuts(demo / "wan" / "tokenizer", [run])[run].lost == "…" + "x" * 13


def test_the_words(demo: Path) -> None:
    cut = find_cuts(demo / "wan" / "tokenizer", [WORDS])[WORDS]
    assert cut.lost.split() == WORDS.split()[-len(cut.lost.split()) :]
    assert not cut.lost.startswith("…")
    assert str(cut) == f"{cut.tokens} tokens, the model reads 512; lost: {cut.lost!r}"
    assert cut.short(10) == f"{cut.tokens} tokens, the model reads 512; lost: '{cut.lost[:10]}…'"
    assert Cut(513, "end").short() == "513 tokens, the model reads 512; lost: 'end'"


@pytest.mark.parametrize(
    ("text", "counted"),
    [("x" * 250, False), ("é" * 125, False), ("é" * 126, True), ("x" * 510, False), ("x" * 511, True), ("", False)],
)
def test_which_texts_are_counted(text: str, counted: bool) -> None:
    assert may_be_too_long(text) == counted


def test_short_texts_need_no_tokenizer(tmp_path: Path) -> None:
    assert find_cuts(tmp_path, ["A woman walks.", "x" * 510]) == {}


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"{", "not a tokenizer"), (b"", "not a tokenizer"), (b"\xff", "not a tokenizer"), (None, "No such")],
)
def test_a_damaged_tokenizer(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}/tokenizer\.json: {said}") as caught:
        find_cuts(tmp_path, [WORDS])
    assert "\n" not in str(caught.value)


def test_imports_no_torch(demo: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lynx_parallel.plan.prompt_length import find_cuts;"
        f"assert find_cuts(Path({str(demo / 'wan' / 'tokenizer')!r}), [{WORDS!r}]); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "tokenizers" in loaded
    assert not {"torch", "diffusers", "transformers", "ray", "numpy"} & set(loaded)
