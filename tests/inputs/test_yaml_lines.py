"""The YAML reader: lines, keys as text, limits."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import pytest

from lynx_parallel.inputs import text_files as files
from lynx_parallel.inputs import yaml_lines
from lynx_parallel.inputs.problems import Problems
from lynx_parallel.inputs.yaml_lines import read_scalar, read_yaml


def read(path: Path, content: bytes | str) -> tuple[object, list[str]]:
    file = path / "f.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    problems = Problems()
    document = read_yaml(file, problems)
    return (document.data if document else None), lines_of(problems)


def lines_of(problems: Problems) -> list[str]:
    return [f"{line}: {message}" for _, line, message in problems._found]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("yes", True),
        ("Off", False),
        ("TRUE", True),
        ("y", "y"),
        ("7", 7),
        ("-07", -7),
        ("1_000", 1000),
        ("0x1F", 31),
        ("0o17", 15),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        (".inf", float("inf")),
        ("-.Inf", float("-inf")),
        ("12:30", "12:30"),
        ("2027-01-31", date(2027, 1, 31)),
        ("2027-02-31", "2027-02-31"),
        ("1.2.3", "1.2.3"),
        ("٣", "٣"),
        ("7\n", "7\n"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_scalars(text: str, value: object) -> None:
    got = read_scalar(text)
    assert got == value
    assert type(got) is type(value)


def test_keys_are_text_and_lines_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("no: 1\n1:\n  on: [a,\n    'b']\n2027-01-01: &x {k: yes}\nz: *x\n")
    problems = Problems()
    document = read_yaml(file, problems)
    assert document is not None
    assert not problems
    assert document.data == {"no": 1, "1": {"on": ["a", "b"]}, "2027-01-01": {"k": True}, "z": {"k": True}}
    assert document.lines[("no",)] == 1
    assert document.lines[("1", "on")] == 3
    assert document.lines[("1", "on", 1)] == 4
    assert document.lines[("z",)] == 6
    assert document.line(("1", "on", 1, "nothing")) == 4
    assert document.raw[("z", "k")] == "yes"


def test_byte_order_mark_and_quoted_scalars(tmp_path: Path) -> None:
    assert read(tmp_path, b"\xef\xbb\xbfa: '1'\nb: !!str 2\n") == ({"a": "1", "b": "2"}, [])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "1: is empty"),
        ("# only a comment\n", "1: is empty"),
        ("- a\n", "1: a list: the top level must be a mapping (key: value)"),
        ("just text\n", "1: 'just text': the top level must be a mapping (key: value)"),
        ("a: 1\n---\nb: 2\n", "2: a second document starts here: one file holds one"),
        ("a: 1\nb: 2\na: 3\n", "3: a: given twice, first on line 1"),
        ("a:\n  b: 1\n  c: 1\n  b: 2\n", "4: a.b: given twice, first on line 2"),
        ("a:\n\tb: 1\n", "2: not valid YAML: indent with spaces, not tabs"),
        ("x: 1\na: *b\n", "2: *b: no such anchor above"),
        ("a: &b [*b]\n", "1: *b: refers to itself"),
        ("a: &b {c: 1}\nd:\n  <<: *b\n", "3: merge keys (<<) are not supported: write the keys out"),
        ("[a]: 1\n", "1: a key must be plain text, not a list, a mapping or an alias"),
        ("a: !!python/object:os.system x\n", "1: the tag 'tag:yaml.org,2002:python/object:os.system' is not"
         " supported: leave it out"),
        ("a: !thing {}\n", "1: the tag '!thing' is not supported: leave it out"),
        ("a: " + "[" * 60 + "]" * 60, "1: nested deeper than 50 levels"),
        ("a: " + "[" * 100_000, "1: nested deeper than 50 levels"),
        ('a: "\\0"\n', "1: '\\x00': a NUL or half a surrogate pair is not text"),
        (b"a: 1\nb: \xff\n", "2: not UTF-8 text"),
        ("a: 1".encode("utf-16")[:-1], "1: not UTF-16 text"),
        ("a: 1\n".encode("utf-16") + b"\x00\xd8", "2: not UTF-16 text"),
        (b"a: 1\nb: \x00\n", "2: holds the control character '\\x00'"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, content: bytes | str, said: str) -> None:
    _, said_lines = read(tmp_path, content)
    assert said_lines == [said]


def test_broken_yaml_has_a_line(tmp_path: Path) -> None:
    _, lines = read(tmp_path, "a: 1\nb: [1, 2\nc: 3\n")
    assert len(lines) == 1
    assert lines[0].startswith(("2: not valid YAML: ", "3: not valid YAML: "))


def test_billion_laughs_are_stopped(tmp_path: Path) -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for i in range(1, 12):
        text += f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 10) + "]\n"
    _, lines = read(tmp_path, text)
    assert [line.partition(": ")[2] for line in lines] == ["too large when its aliases are written out"]


def test_aliases_deeper_than_the_limit(tmp_path: Path) -> None:
    text = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 2000))
    _, lines = read(tmp_path, text)
    assert [line.partition(": ")[2] for line in lines] == ["too large when its aliases are written out"]


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, lines = read(tmp_path, b"a: 1\n" + b"#" * files.MAX_BYTES)
    assert lines == ["0: larger than 16 MiB"]
    monkeypatch.setattr(yaml_lines, "MAX_VALUES", 10)
    _, lines = read(tmp_path, "a:\n" + "- x\n" * 20)
    assert [line.partition(": ")[2] for line in lines] == ["more than 10 values"]


def test_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, said in [
        ("", "0: is a folder, not a file"),
        ("pipe", "0: not a regular file"),
        ("missing", "0: missing file"),
        ("x" * 5000, "0: cannot be read: File name too long"),
        ("a\0b", "0: not a possible path"),
        ("loop", "0: cannot be read: Too many levels of symbolic links"),
    ]:
        problems = Problems()
        assert read_yaml(tmp_path / name, problems) is None
        assert lines_of(problems) == [said]


def test_pure_python_loader_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a: &x {b: [1, 'two', 3.5]}\nc: *x\n1: ''\n"
    expected = read(tmp_path, text)
    monkeypatch.setattr(yaml_lines, "_LOADER", yaml_lines.yaml.SafeLoader)
    assert read(tmp_path, text) == expected
    assert read(tmp_path, "a: 1\na: 2\n")[1] == ["2: a: given twice, first on line 1"]
