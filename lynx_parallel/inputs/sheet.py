"""Reads a table, as spreadsheets and programs save them, into rows of named cells.

Text tables may be separated by commas, semicolons or tabs, in UTF-8 or UTF-16. Excel workbooks need the extra
``[excel]``.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lynx_parallel.inputs.aliases import suggest
from lynx_parallel.inputs.excel import is_workbook, workbook_rows
from lynx_parallel.inputs.problems import Problems, shown_value
from lynx_parallel.inputs.text_files import Unreadable, read_bytes, read_text

MAX_TABLE_BYTES = 64 * 2**20
TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".txt", ".xlsx", ".xlsm", ".xls", ".ods")
SEPARATORS = ",;\t"
_REMARKS = {"note", "notes", "comment"}
_SEP_LINE = re.compile(r'"?sep=([^\r\n])"?(?:\r\n|\r|\n|\Z)', re.IGNORECASE)


@dataclass(frozen=True)
class Columns:
    """The columns of one kind of table.

    Attributes:
        known: whether a column of this name is used.
        allowed: the names that a message about an unknown name lists.
        missing: names of the columns that these names lack.
    """

    known: Callable[[str], bool]
    allowed: Callable[[str], list[str]]
    missing: Callable[[Collection[str]], list[str]]


@dataclass
class Sheet:
    """A table's rows: line number, and the cells that are not empty by column.

    Attributes:
        end: the last line.
        good: the header is there and right.
        decimal_comma: numbers may be written ``4,5``, because commas do not separate the cells.
    """

    end: int = 1
    good: bool = False
    decimal_comma: bool = False
    rows: list[tuple[int, dict[str, str]]] = field(default_factory=list)


def is_table(name: str) -> bool:
    """Returns whether ``from:`` means a table: one name with a suffix of tables, not a pattern."""
    return Path(name).suffix.lower() in TABLE_SUFFIXES and not re.search("[*?]", name)


def read_sheet(file: Path, columns: Columns, problems: Problems) -> Sheet:
    """Reads a table; wrong rows and columns are recorded and left out.

    Columns without a name and empty rows are skipped. A row may end early, because Excel leaves trailing separators
    out. Columns whose name starts with ``_``, or is ``note``, ``notes`` or ``comment``, are ignored.
    """
    sheet = Sheet()
    names: list[str] | None = None
    try:
        for line, cells in _rows(file, columns, sheet, problems):
            sheet.end = line
            if not any(cell.strip() for cell in cells):
                continue
            if names is None:
                names = [cell.strip() for cell in cells]
                sheet.good = _check_header(file, line, names, columns, problems)
                if not sheet.good:
                    return sheet
            elif row := _row(file, line, names, cells, problems):
                sheet.rows.append((line, row))
    except Unreadable as error:
        problems.add(file, error.line, error.reason)
        return sheet
    if names is None:
        problems.add(file, 1, "is empty: the first row names the columns")
    return sheet


def _is_remark(name: str) -> bool:
    return name.startswith("_") or name.casefold() in _REMARKS


def _check_header(file: Path, line: int, names: list[str], columns: Columns, problems: Problems) -> bool:
    before = len(problems)
    for i, name in enumerate(names):
        if not name or _is_remark(name):
            continue
        if not columns.known(name):
            hint = suggest(name, columns.allowed(name))
            message = f"column {shown_value(name)}: unknown column; {hint}; a name that starts with _ is ignored"
            problems.add(file, line, message)
        elif name in names[:i]:
            problems.add(file, line, f"column {name}: given twice")
    for name in columns.missing(names):
        problems.add(file, line, f"column {name}: missing")
    return len(problems) == before


def _row(file: Path, line: int, names: list[str], cells: list[str], problems: Problems) -> dict[str, str] | None:
    row: dict[str, str] = {}
    for i, cell in enumerate(cells):
        if not cell.strip():
            continue
        if i >= len(names) or not names[i]:
            where = f"the header has {len(names)}" if i >= len(names) else f"column {i + 1} has no name"
            problems.add(file, line, f"row has {i + 1} cells, {where}: {shown_value(cell)}")
            return None
        if not _is_remark(names[i]):
            row[names[i]] = cell
    return row or None


def _rows(file: Path, columns: Columns, sheet: Sheet, problems: Problems) -> Iterator[tuple[int, list[str]]]:
    content = read_bytes(file, MAX_TABLE_BYTES)
    if is_workbook(content):
        yield from workbook_rows(file, content, problems)
        return
    try:
        text = read_text(file, MAX_TABLE_BYTES)
    except Unreadable as error:
        if error.reason == "not UTF-8 text":
            error.reason += "; in Excel, save it as 'CSV UTF-8' or as .xlsx"
        raise
    skipped = 0
    if given := _SEP_LINE.match(text):
        separator, text, skipped = given[1], text[given.end() :], 1
    else:
        separator = max(SEPARATORS, key=lambda one: _header_score(text, one, columns.known))
    sheet.decimal_comma = separator != ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    line = skipped
    try:
        for cells in reader:
            start, line = line + 1, reader.line_num + skipped
            yield start, cells
    except csv.Error as error:
        raise Unreadable(f"not a valid table: {error}", max(reader.line_num + skipped, 1)) from None


def _header_score(text: str, separator: str, known: Callable[[str], bool]) -> tuple[int, int]:
    """Returns a score of the first row with this separator: known columns, then number of cells."""
    try:
        for cells in csv.reader(io.StringIO(text, newline=""), delimiter=separator):
            if any(cell.strip() for cell in cells):
                return sum(known(cell.strip()) for cell in cells), len(cells)
    except csv.Error:
        pass
    return 0, 0
