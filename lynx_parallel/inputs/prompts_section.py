"""Reads ``prompts:``."""

from __future__ import annotations

from functools import partial
from typing import Any

from lynx_parallel.inputs.entries import PromptEntry
from lynx_parallel.inputs.manifest import Prompt
from lynx_parallel.inputs.problems import KeyPath, Problems, shown_value
from lynx_parallel.inputs.sections import section_ids
from lynx_parallel.inputs.subject_entry import named_file
from lynx_parallel.inputs.template import template_mistake
from lynx_parallel.inputs.text_files import Unreadable, read_text
from lynx_parallel.inputs.validate import read_model
from lynx_parallel.inputs.weight_names import resolve_file
from lynx_parallel.inputs.yaml_lines import Document

MAX_PROMPT_BYTES = 2**20


def read_prompts(document: Document, problems: Problems) -> dict[str, Prompt | None]:
    """Prompts by id, None for those that are wrong (recorded)."""
    out: dict[str, Prompt | None] = {}
    for name in section_ids(document, "prompts", problems):
        entry = read_model(PromptEntry, document, ("prompts", name), problems)
        out[name] = _prompt(name, entry, document, problems) if entry else None
    return out


def _prompt(name: str, entry: PromptEntry, document: Document, problems: Problems) -> Prompt | None:
    path: KeyPath = document.standing(("prompts", name, "text" if entry.file is None else "file"))
    text: Any = entry.text
    if entry.file is not None:
        try:
            text = read_text(resolve_file(document.file.parent, entry.file), MAX_PROMPT_BYTES)
        except Unreadable as error:
            document.blame(problems, path, f"{shown_value(entry.file)}: {error.reason}")
            return None
    text = text.strip()
    wrong = template_mistake(text) if text else "the prompt is empty"
    if wrong:
        document.blame(problems, path, wrong)
        return None
    blame = partial(_blame, document, name, problems)
    return Prompt(name, text, entry.sampling, named_file(document.file.parent, "start_image", entry.start_image, blame))


def _blame(document: Document, name: str, problems: Problems, path: KeyPath, message: str) -> None:
    document.blame(problems, ("prompts", name, *path), message)
