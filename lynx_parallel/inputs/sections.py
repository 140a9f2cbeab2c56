"""Ids of a section of the manifest, such as ``subjects:`` or ``prompts:``."""

from __future__ import annotations

from lynx_parallel.inputs.entries import ID, ID_ALLOWED
from lynx_parallel.inputs.problems import Problems, shown_value
from lynx_parallel.inputs.yaml_lines import Document


def section_ids(document: Document, section: str, problems: Problems) -> list[str]:
    """Returns the section's keys that are ids. Records other keys, and ids that differ in case only."""
    data = document.data.get(section)
    if not isinstance(data, dict) or not data:
        if section in document.data:
            shown = "is empty" if data == {} else document.shown((section,), data)
            message = f"{shown}: must be a mapping of ids, with at least one"
            document.blame(problems, (section,), message)
        return []
    seen: dict[str, str] = {}
    good: list[str] = []
    for name in data:
        path = (section, name)
        first = seen.setdefault(name.casefold(), name)
        if not ID.fullmatch(name):
            document.blame(problems, path, f"{shown_value(name)}: {ID_ALLOWED}")
        elif first != name:
            line = document.line((section, first))
            document.blame(problems, path, f"given twice, first as {first!r} on line {line} (case is ignored)")
        else:
            good.append(name)
    return good
