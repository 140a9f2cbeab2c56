"""Reads the rows of an Excel workbook as text. Needs the extra ``[excel]`` (openpyxl)."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from yaml.reader import Reader

from lynx_parallel.inputs.problems import Problems, shown_value
from lynx_parallel.inputs.text_files import Unreadable
from lynx_parallel.text import shown_path

MAX_UNPACKED_BYTES = 512 * 2**20
MAX_ROWS = 2**20
"""Rows that a worksheet can have."""
_ZIP = b"PK\x03\x04"
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_FORMULA = re.compile(rb"<f[ >/]")


def is_workbook(content: bytes) -> bool:
    """Returns whether a file's content is a workbook of whatever kind, rather than text."""
    return content.startswith((_ZIP, _OLE))


def workbook_rows(file: Path, content: bytes, problems: Problems) -> list[tuple[int, list[str]]]:
    """Returns row number and cells of the first worksheet that is not hidden.

    Whole numbers have no decimal point, and dates are written like 2027-01-31. A warning names further worksheets with
    cells. Cells with an error value, or with a formula that was never calculated, are recorded as mistakes.

    Raises:
        Unreadable: no .xlsx workbook, damaged, too large, or openpyxl is missing.
    """
    has_formulas = _look_inside(content)
    try:
        import openpyxl
    except ImportError:
        message = "is an Excel workbook: pip install 'lynx-parallel[excel]' to read it, or save it as 'CSV UTF-8'"
        raise Unreadable(message) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # openpyxl's, about styles and validation that are not read
            book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
            sheets = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"]
            if not sheets:
                raise Unreadable("has no worksheet")
            formulas = openpyxl.load_workbook(io.BytesIO(content), read_only=True) if has_formulas else None
            rows = list(_rows(file, sheets[0], formulas and formulas[sheets[0].title], problems))
            others = [sheet.title for sheet in sheets[1:] if _has_cells(sheet)]
    except Unreadable:
        raise
    except Exception as error:  # openpyxl has no base class for what a damaged file can raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Unreadable(f"not an Excel workbook that can be read: {reason}") from None
    if others:
        message = "only the first worksheet of a workbook is read; move the rows there, or save it as a file of its own"
        problems.warn("worksheet-ignored", message, f"{shown_path(file)}: {', '.join(map(shown_value, others))}")
    return rows


def _look_inside(content: bytes) -> bool:
    """Returns whether some cell holds a formula; raises Unreadable if this is no .xlsx workbook."""
    if content.startswith(_OLE):
        raise Unreadable("is an old or a password-protected Excel file: save it as .xlsx without a password, or as CSV")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            if "xl/workbook.xml" not in names:
                raise Unreadable("is neither text nor an Excel workbook: save it as .xlsx or CSV")
            if sum(member.file_size for member in archive.infolist()) > MAX_UNPACKED_BYTES:
                raise Unreadable(f"larger than {MAX_UNPACKED_BYTES >> 20} MiB when unpacked: save it as CSV")
            sheets = [name for name in names if name.startswith("xl/worksheets/")]
            return any(_FORMULA.search(archive.read(name)) for name in sheets)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise Unreadable(f"not an Excel workbook that can be read: {error}") from None


def _rows(file: Path, sheet: Any, formulas: Any, problems: Problems) -> Iterator[tuple[int, list[str]]]:
    sheet.reset_dimensions()  # the size that some programs write is wrong
    written = None
    if formulas is not None:
        formulas.reset_dimensions()
        written = formulas.iter_rows()
    for number, row in enumerate(sheet.iter_rows(), 1):
        if number > MAX_ROWS:
            raise Unreadable(f"has more than {MAX_ROWS} rows")
        sources = next(written, ()) if written else ()
        cells = []
        for i, cell in enumerate(row):
            value = cell.value
            text = _cell_text(value)
            if cell.data_type == "e":
                problems.add(file, number, f"cell {_name(i, number)}: holds the error {shown_value(text)}")
            elif value is None and i < len(sources) and sources[i].data_type == "f":
                message = "holds a formula without a result: open and save the workbook in Excel"
                problems.add(file, number, f"cell {_name(i, number)}: {message}")
            elif odd := Reader.NON_PRINTABLE.search(text):
                problems.add(file, number, f"cell {_name(i, number)}: holds the control character {odd[0]!r}")
            cells.append(text)
        yield number, cells


def _has_cells(sheet: Any) -> bool:
    sheet.reset_dimensions()
    return any(cell.value is not None for row in sheet.iter_rows() for cell in row)


def _name(column: int, row: int) -> str:
    from openpyxl.utils import get_column_letter

    return f"{get_column_letter(column + 1)}{row}"


def _cell_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time() else value.isoformat(" ")
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value)
