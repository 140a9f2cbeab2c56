"""Tables as Excel and others save them, read through ``shots: {from: …}``."""

from __future__ import annotations

import datetime
import io
import re
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from lynx_parallel.inputs import excel, sheet
from tests.helpers.manifests import BOTH, HEAD, PROMPTS, Complain, Load

TEXT = HEAD + BOTH + PROMPTS + "shots: {from: t.csv}\n"
EXCEL = TEXT.replace("t.csv", "t.xlsx")
TWO = ["ada/run/1", "ada/run/2"]


def ids(load: Load, table: bytes | str, file: str = "t.csv") -> list[str]:
    Path(file).write_bytes(table if isinstance(table, bytes) else table.encode())
    return [shot.id for shot in load(TEXT.replace("t.csv", file)).shots]


def workbook(
    *rows: list[Any], name: str = "t.xlsx", more: dict[str, list[list[Any]]] | None = None
) -> openpyxl.Workbook:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    for title, cells in (more or {}).items():
        other = book.create_sheet(title)
        for row in cells:
            other.append(row)
    book.save(name)


@pytest.mark.parametrize(
    "table",
    [
        "subject,prompt,takes,,\r\nada,run,2,,\r\n,,,,\r\n",
        "subject;prompt;takes\r\nada;run;2\r\n",
        "\ufeffsep=;\r\nsubject;prompt;takes\r\nada;run;2\r\n",
        'SEP=|\nsubject|prompt|takes\nada|run|2\n',
        '"sep=;"\nsubject;prompt;takes\nada;run;2\n',
        "subject\tprompt\ttakes\nada\trun\t2\n",
        "subject\tprompt\ttakes\r\nada\trun\t2\r\n".encode("utf-16"),
        "\ufeffsubject\tprompt\ttakes\r\nada\trun\t2\r\n".encode("utf-16-be"),
        "\ufeffsubject,prompt,takes\rada,run,2\r",
        " subject , prompt ,takes\n\n ada , run ,2 \n",
        "subject,prompt,takes,_row,Note,comment,NOTES,_\nada,run,2,17,a,b,c,d\n",
        "_id;subject;;prompt;takes;;\n1;ada;;run;2;;\n;;;\n",
        'note;subject;prompt;takes\n"a;b,c";ada;run;2\n',
    ],
)  # fmt: skip
def test_tables_as_programs_save_them(folder: Path, load: Load, table: bytes | str) -> None:
    assert ids(load, table) == TWO


def test_rows_may_end_early(folder: Path, load: Load) -> None:
    """Excel leaves the last separators out where sixteen rows in a row have nothing there."""
    assert ids(load, "subject,prompt,seed,takes\nada,run,,2\nbob,run\nbob,walk,\n") == [*TWO, "bob/run/1", "bob/walk/1"]


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("subject,prompt,,\nada,run,,x\n", "t.csv:2: row has 4 cells, column 4 has no name: 'x'"),
        ("subject,prompt\nada,run,,x\n", "t.csv:2: row has 4 cells, the header has 2: 'x'"),
        ("sep=;\nsubject;prompt\n\nada;nun\n", "t.csv:4: column prompt: 'nun': no such prompt; did you mean 'run'?"
         " (allowed: walk, run)"),
        ("sep=;\nsubject;prompt\nada;\"run\n", "t.csv:3: not a valid table: unexpected end of data"),
        ("sep=;\nsubject;\nada\n", "t.csv:2: column prompt or prompt_text: missing"),
        ("sep=;\n", "t.csv:1: is empty: the first row names the columns"),
        (b"subject;prompt_text\nada;caf\xe9\n",
         "t.csv:2: not UTF-8 text; in Excel, save it as 'CSV UTF-8' or as .xlsx"),
        ("\ufeffa\n".encode("utf-16-le") + b"x", "t.csv:2: not UTF-16 text"),
    ],
)  # fmt: skip
def test_wrong_tables(folder: Path, complain: Complain, table: bytes | str, line: str) -> None:
    (folder / "t.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    assert complain(TEXT) == [line]


def test_decimal_commas_where_commas_do_not_separate(folder: Path, load: Load, complain: Complain) -> None:
    table = "subject;prompt;sampling.guidance_scale;sampling.ref_blocks;sampling.negative_prompt\nada;run;4,5;1,2;3,4\n"
    (folder / "t.csv").write_text(table)
    sampling = load(TEXT).shots[0].sampling
    assert (sampling.guidance_scale, sampling.ref_blocks, sampling.negative_prompt) == (4.5, "1,2", "3,4")
    (folder / "t.csv").write_text(table.replace("4,5", '"1.234,5"'))
    assert complain(TEXT) == ["t.csv:2: column sampling.guidance_scale: '1.234,5': must be a finite number from 0"]
    (folder / "t.csv").write_text('subject,prompt,sampling.guidance_scale\nada,run,"4,5"\n')
    assert complain(TEXT) == ["t.csv:2: column sampling.guidance_scale: '4,5': must be a finite number from 0"]


@pytest.mark.parametrize("cell", ['"[0.1, 0.8]"', '"0.1, 0.8"', "0.1 0.8", "0.1;0.8"])
def test_a_window_is_two_numbers(folder: Path, load: Load, complain: Complain, cell: str) -> None:
    (folder / "t.csv").write_text(f"subject,prompt,sampling.identity_window\nada,run,{cell}\n")
    assert load(TEXT).shots[0].sampling.identity_window == (0.1, 0.8)
    (folder / "t.csv").write_text("subject,prompt,sampling.identity_window\nada,run,0.8 0.1\n")
    assert complain(TEXT) == [
        "t.csv:2: column sampling.identity_window: '0.8 0.1': must be [start, end], fractions of the steps with"
        " 0 ≤ start ≤ end ≤ 1"
    ]


def test_texts_keep_commas_and_lines(folder: Path, load: Load) -> None:
    (folder / "t.csv").write_bytes('subject;prompt_text\r\nada;"One, two;\r\n""three"" é"\r\n'.encode("utf-16"))
    assert load(TEXT).shots[0].text == 'One, two;\r\n"three" é'


def test_a_prompt_in_a_utf16_file(folder: Path, load: Load) -> None:
    (folder / "p.txt").write_bytes("Ein {person} läuft.\r\n".encode("utf-16"))
    assert load(HEAD + BOTH + "prompts: {p: {file: p.txt}}\n").shots[0].text == "Ein woman läuft."


def test_a_workbook(folder: Path, load: Load) -> None:
    workbook(
        ["subject", "prompt", "takes", "seed", "sampling.guidance_scale", "sampling.fps", "prompt_text", "note", None],
        ["ada", "run", 2, 7.0, 4.5, 24, None, "x", None],
        [None, "  ", None],
        ["*", None, None, None, None, None, "Ö, a\nb", datetime.date(2026, 1, 2), None],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shots = load(EXCEL).shots
    assert [(s.id, s.seed, s.sampling.guidance_scale, s.sampling.fps) for s in shots[:2]] == [
        ("ada/run/1", 7, 4.5, 24.0),
        ("ada/run/2", 8, 4.5, 24.0),
    ]
    assert [(s.subject.id, s.text) for s in shots[2:]] == [("ada", "Ö, a\nb"), ("bob", "Ö, a\nb")]


def test_a_workbook_by_another_name(folder: Path, load: Load) -> None:
    workbook(["subject", "prompt"], ["ada", "run"], name="t.xlsx")
    Path("t.xlsx").rename("t.csv")
    assert [shot.id for shot in load(TEXT).shots] == ["ada/run/1"]


def test_mistakes_in_a_workbook_name_row_and_cell(folder: Path, complain: Complain) -> None:
    workbook(
        ["subject", "prompt", "takes"],
        ["ada", "run", 1.5],
        [],
        ["ada", "#N/A", None],
        ["bob", "walk", "=1+1"],
        ["bob", "run", True],
    )
    assert complain(EXCEL) == [
        "t.xlsx:2: column takes: '1.5': must be a whole number from 1",
        "t.xlsx:4: cell B4: holds the error '#N/A'",
        "t.xlsx:4: column prompt: '#N/A': no such prompt; allowed: walk, run",
        "t.xlsx:5: cell C5: holds a formula without a result: open and save the workbook in Excel",
        "t.xlsx:6: column takes: 'true': must be a whole number from 1",
    ]


def edit_worksheet(old: bytes, new: bytes) -> None:
    """Replaces what fits the pattern ``old`` in t.xlsx's first worksheet; there must be one such place."""
    with zipfile.ZipFile("t.xlsx") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = "xl/worksheets/sheet1.xml"
    members[name], count = re.subn(old, new, members[name])
    assert count == 1
    with zipfile.ZipFile("t.xlsx", "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)


def test_a_formula_with_its_result(folder: Path, load: Load) -> None:
    workbook(["subject", "prompt", "takes"], ["ada", "run", "=1+1"])
    edit_worksheet(rb"(<f>1\+1</f>)(<v */>|<v></v>)", rb"\1<v>2</v>")
    assert [shot.id for shot in load(EXCEL).shots] == TWO


def test_a_worksheet_that_is_larger_than_it_says(folder: Path, load: Load) -> None:
    """Some programs write a size that is wrong."""
    workbook(["subject", "prompt", "takes"], ["ada", "run", 2])
    edit_worksheet(b'<dimension ref="A1:C2"', b'<dimension ref="A1"')
    assert [shot.id for shot in load(EXCEL).shots] == TWO


def test_other_worksheets(folder: Path, load: Load) -> None:
    rows = [["subject", "prompt"], ["ada", "run"]]
    workbook(*rows, more={"Empty": [[]], "May": [["x"]], "June": [[None], ["y"]]})
    campaign = load(EXCEL)
    message = "only the first worksheet of a workbook is read; move the rows there, or save it as a file of its own"
    assert [(n.kind, n.message, n.example) for n in campaign.notices] == [
        ("worksheet-ignored", message, "t.xlsx: 'May', 'June'")
    ]
    book = openpyxl.load_workbook("t.xlsx")
    hidden = book.create_sheet("lists", 0)
    hidden.append(["x"])
    hidden.sheet_state = "hidden"
    book.save("t.xlsx")
    assert load(EXCEL).shots == campaign.shots


def test_without_openpyxl(folder: Path, complain: Complain, monkeypatch: pytest.MonkeyPatch) -> None:
    workbook(["subject", "prompt"], ["ada", "run"])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert complain(EXCEL) == [
        "t.xlsx: is an Excel workbook: pip install 'lynx-parallel[excel]' to read it, or save it as 'CSV UTF-8'"
    ]


def packed(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, b"<x>" + b" " * 100_000)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1 xls", "is an old or a password-protected Excel file: save it as .xlsx"),
        (packed("content.xml"), "is neither text nor an Excel workbook: save it as .xlsx or CSV"),
        (packed("xl/workbook.xml"), "not an Excel workbook that can be read: "),
        (b"PK\x03\x04 cut off", "not an Excel workbook that can be read: "),
    ],
)
def test_damaged_and_foreign_workbooks(folder: Path, complain: Complain, content: bytes, said: str) -> None:
    (folder / "t.xlsx").write_bytes(content)
    (line,) = complain(EXCEL)
    assert line.startswith(f"t.xlsx: {said}")


def test_a_workbook_too_large(folder: Path, complain: Complain, monkeypatch: pytest.MonkeyPatch) -> None:
    workbook(["subject", "prompt"], ["ada", "run"])
    monkeypatch.setattr(excel, "MAX_UNPACKED_BYTES", 2**20)
    (folder / "t.xlsx").write_bytes(packed("xl/workbook.xml", *(f"{i}" for i in range(11))))
    assert complain(EXCEL) == ["t.xlsx: larger than 1 MiB when unpacked: save it as CSV"]
    monkeypatch.setattr(excel, "MAX_ROWS", 1)
    workbook(["subject", "prompt"], ["ada", "run"])
    assert complain(EXCEL) == ["t.xlsx: has more than 1 rows"]
    monkeypatch.setattr(sheet, "MAX_TABLE_BYTES", 100)
    assert complain(EXCEL)[0].startswith("t.xlsx: larger than ")
