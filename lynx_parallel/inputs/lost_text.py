"""Warns of words that YAML dropped from an unquoted text: ``A woman on track #1 runs`` ends before the ``#``."""

from __future__ import annotations

import re

from lynx_parallel.inputs.problems import KeyPath, Problems, shown_key, shown_value
from lynx_parallel.inputs.yaml_lines import Document, Lost
from lynx_parallel.text import shown_path

_MESSAGE = "YAML dropped a part of an unquoted text; put the text in quotes"
_REMARK = re.compile(r"#(?:todo|fixme|xxx|hack|note|noqa)\b", re.IGNORECASE)
_HELD = ("vars", "labels", "consent")


def warn_of_lost_text(document: Document, problems: Problems) -> None:
    """Records a warning for each value that lost a part of its text.

    A comment counts as lost text if its ``#`` is directly followed by a letter, a digit or another sign (``#1``,
    ``#blessed``), or if one space stands before the ``#`` and a number after it (``seat # 5``). Remarks such as
    ``# the full one``, ``## old`` and ``#TODO`` do not count. In names and paths, only a digit behind ``#`` does.
    """
    for path, lost in document.lost.items():
        if not isinstance(_value(document, path), str | None):
            continue
        for words in _lost_words(path, lost):
            where = f"{shown_path(document.file)}:{lost.line}: {shown_key(path)}"
            problems.warn("text-dropped", _MESSAGE, f"{where}: {shown_value(words)}")


def _lost_words(path: KeyPath, lost: Lost) -> list[str]:
    free = _is_free_text(path)
    words = [lost.mark] if free and lost.mark else []
    comment = lost.comment
    if free:
        joined = re.match(r"#[^\s#]", comment) and not _REMARK.match(comment)
        if joined or (lost.gap == 1 and re.match(r"# \d", comment)):
            words.append(comment)
    elif re.match(r"#\d", comment):
        words.append(comment)
    return words


def _is_free_text(path: KeyPath) -> bool:
    """Returns whether any words may stand there: in prompts, negative prompts, vars, labels and consent."""
    if path[-1] == "negative_prompt" or (len(path) > 1 and path[-2] in _HELD):
        return True
    return path[0] == "prompts" and (len(path) == 2 or (len(path) == 3 and path[2] == "text"))


def _value(document: Document, path: KeyPath) -> object:
    value = document.data
    for part in path:
        value = value[part]
    return value
