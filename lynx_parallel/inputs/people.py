"""Reads ``subjects: {from: people.csv}``, one subject per row."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lynx_parallel.inputs.entries import ID, ID_ALLOWED, VAR, ConsentEntry, SubjectEntry
from lynx_parallel.inputs.ids import made_id
from lynx_parallel.inputs.manifest import Subject
from lynx_parallel.inputs.problems import KeyPath, Problems, shown_value
from lynx_parallel.inputs.sheet import Columns, read_sheet
from lynx_parallel.inputs.subject_entry import make_subject
from lynx_parallel.inputs.table import SAMPLING_COLUMNS, setting_value
from lynx_parallel.inputs.validate import explain
from lynx_parallel.inputs.yaml_lines import Document, Place, read_scalar

COLUMNS = (
    "id",
    "image",
    "embedding",
    "landmarks",
    "face",
    *(f"consent.{name}" for name in ConsentEntry.model_fields),
    *SAMPLING_COLUMNS,
)
_SECTIONS = ("vars", "sampling", "consent", "labels")


def _known(name: str) -> bool:
    section, dot, rest = name.partition(".")
    return name in COLUMNS or (section == "vars" and VAR.fullmatch(rest) is not None) or (
        section == "labels" and bool(dot and rest.strip())
    )  # fmt: skip


def _allowed(name: str) -> list[str]:
    """Returns the columns, with vars and labels named as an unknown column may have meant them."""
    rest = name.rpartition(".")[2].strip() or "name"
    var = re.sub(r"\W+", "_", rest, flags=re.ASCII)
    return [*COLUMNS[:5], f"vars.{var if VAR.fullmatch(var) else 'name'}", f"labels.{rest}", *COLUMNS[5:]]


def _missing(names: Collection[str]) -> list[str]:
    return [] if {"id", "image", "embedding"} & set(names) else ["id, image or embedding"]


def read_people(document: Document, file: Path, given: dict[str, Any], problems: Problems) -> dict[str, Subject | None]:
    """Returns the table's subjects by id, in its order, None for those that are wrong (recorded).

    Files are relative to the table. A row without an id has one made from its picture's name.

    Args:
        document: learns where each subject stands.
        given: ``vars``, ``face`` and so on for all rows, already checked. A row's own cells win, name by name.
    """
    before = len(problems)
    sheet = read_sheet(file, Columns(_known, _allowed, _missing), problems)
    out: dict[str, Subject | None] = {}
    seen: dict[str, tuple[str, int]] = {}
    for line, row in sheet.rows:
        name = _row_id(row, file, line, problems)
        if name is None:
            continue
        first, first_line = seen.setdefault(name.casefold(), (name, line))
        if first_line != line:
            message = f"the id {name!r} is given twice, first as {first!r} on line {first_line} (case is ignored)"
            problems.add(file, line, f"row: {message}")
            continue
        document.elsewhere["subjects", name] = Place(file, line, f"subject {name}")
        out[name] = _subject(name, row, given, file, line, sheet.decimal_comma, problems)
    if sheet.good and not sheet.rows and len(problems) == before:
        problems.add(file, sheet.end, "has no rows: at least one subject must result")
    return out


def _row_id(row: dict[str, str], file: Path, line: int, problems: Problems) -> str | None:
    if "id" in row:
        name = row["id"].strip()
        if ID.fullmatch(name):
            return name
        problems.add(file, line, f"column id: {shown_value(name)}: {ID_ALLOWED}; for example {made_id(name)}")
        return None
    source = row.get("image") or row.get("embedding")
    if source is None:
        problems.add(file, line, "columns id, image and embedding: none is given: a row needs one of them")
        return None
    return id_of_file(Path(source.strip()).stem, f"{source.strip()}", problems)


def id_of_file(stem: str, shown: str, problems: Problems) -> str:
    """Returns the id of a subject from its file's name; a warning shows one that had to be made."""
    name = made_id(stem)
    if name != stem:
        message = "a file name is no valid id, so one was made from it; rename the file, or give an id, to choose it"
        problems.warn("id-made", message, f"{shown} → {name}")
    return name


def _subject(
    name: str,
    row: dict[str, str],
    given: dict[str, Any],
    file: Path,
    line: int,
    decimal_comma: bool,
    problems: Problems,
) -> Subject | None:
    def blame(path: KeyPath, message: str) -> None:
        problems.add(file, line, f"column {'.'.join(map(str, path))}: {message}")

    own: dict[str, Any] = {section: {} for section in _SECTIONS}
    for column, text in row.items():
        section, _, key = column.partition(".")
        if section == "sampling":
            own[section][key] = setting_value(key, text, decimal_comma)
        elif section in _SECTIONS:
            own[section][key] = text.strip()
        elif column != "id":
            own[column] = _value(column, text.strip())
    merged = {**given, **own, **{key: {**(given.get(key) or {}), **own[key]} for key in _SECTIONS}}
    merged["consent"] = merged["consent"] or None
    try:
        entry = SubjectEntry.model_validate(merged)
    except ValidationError as invalid:
        for error in invalid.errors(include_url=False):
            path = tuple(error["loc"])
            written = row.get(".".join(map(str, path[:2]))) or row.get(str(path[0]))
            blame(path, explain(error, shown_value(written if written is not None else error["input"]), SubjectEntry))
        return None
    return make_subject(name, entry, file.parent, blame)


def _value(column: str, text: str) -> Any:
    if column == "face":
        return read_scalar(text)
    if column == "landmarks":
        numbers = [read_scalar(part) for part in re.split(r"[\s,;()\[\]]+", text) if part]
        return [numbers[i : i + 2] for i in range(0, len(numbers), 2)]
    return text
