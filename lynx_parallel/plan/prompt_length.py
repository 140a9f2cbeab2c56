"""Finds prompts that are longer than the text encoder reads. Imports neither torch nor transformers.

The tokenizer is read with the ``tokenizers`` package. Wan's has a vocabulary of 256,000 pieces, which takes about a
second, so it is read only where a text could be too long.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.cleaning import MAX_TOKENS, clean_prompt
from lynx_parallel.inputs.model_config import read_config
from lynx_parallel.text import one_line

SHORT_BYTES = 250
"""Texts up to this size, in UTF-8, cannot have MAX_TOKENS tokens."""
LONGEST_WORD = 40
"""Most characters of a word. A longer run without a space belongs to a language without spaces."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The part of a text that the model does not see.

    Attributes:
        tokens: of the whole text, with the end mark.
        lost: the words at the end of the cleaned text that the model does not see, or not whole.
    """

    tokens: int
    lost: str

    def __str__(self) -> str:
        return f"{self.tokens} tokens, the model reads {MAX_TOKENS}; lost: {self.lost!r}"

    def short(self, characters: int = 160) -> str:
        """Returns the line with at most ``characters`` characters of the lost text."""
        if len(self.lost) <= characters:
            return str(self)
        return str(Cut(self.tokens, f"{self.lost[:characters]}…"))


def may_be_too_long(text: str) -> bool:
    """Returns whether a text must be counted. An ASCII character is one token at most."""
    size = len(text.encode(errors="replace"))
    return size > SHORT_BYTES and not (text.isascii() and size <= MAX_TOKENS - 2)


def find_cuts(tokenizer: Path, texts: Iterable[str]) -> dict[str, Cut]:
    """Returns the texts whose end the model would not see, each with the lost part.

    Args:
        tokenizer: folder of a base's tokenizer, with ``tokenizer.json``.

    Raises:
        CheckpointError: the file cannot be read.
    """
    counter: Any = None
    cuts = {}
    for text in dict.fromkeys(texts):
        if not may_be_too_long(text):
            continue
        counter = counter or _read_tokenizer(tokenizer)
        if cut := _cut(counter, clean_prompt(text)):
            cuts[text] = cut
    return cuts


def _cut(counter: Any, text: str) -> Cut | None:
    encoding = counter.encode(text)
    if len(encoding.ids) <= MAX_TOKENS:
        return None
    marks = sum(encoding.special_tokens_mask)  # the end mark, which is kept
    own = [span for span, special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True) if not special]
    start = _begin(text, own, MAX_TOKENS - marks)
    # A word that the model sees in part counts as lost. In a language without spaces, only the unseen part is lost.
    word = text.rfind(" ", 0, start + 1) + 1
    whole = start - word <= LONGEST_WORD
    return Cut(len(encoding.ids), text[word:] if whole else f"…{text[start:]}")


def _begin(text: str, spans: list[tuple[int, int]], index: int) -> int:
    """Returns the character at which a token begins. The bytes of a run of unknown characters share one span."""
    start, end = spans[index]
    before = index - spans.index((start, end))
    return start + len(text[start:end].encode(errors="replace")[:before].decode(errors="ignore"))


def _read_tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        text = path.read_text(encoding="utf-8")
        if _is_t5(folder):  # transformers rebuilds T5's tokenizer from the vocabulary, without fallback to bytes
            text = re.sub(r'"byte_fallback":\s*true', '"byte_fallback": false', text)
        tokenizer = Tokenizer.from_str(text)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # tokenizers raises Exception itself
        raise CheckpointError(f"{path}: not a tokenizer: {one_line(error)}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _is_t5(folder: Path) -> bool:
    path = folder / "tokenizer_config.json"
    return path.exists() and str(read_config(path).get("tokenizer_class")).startswith("T5Tokenizer")
