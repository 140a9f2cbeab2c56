"""Errors end with a line that names their help, and ``help CODE`` prints it: no Ray, no torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.light_command import errors_of, light


@pytest.mark.parametrize(
    ("arguments", "code", "status"),
    [
        (("none.yaml",), "LX101", 2),
        (("plan", "demo", "--ulises", "2"), "LX102", 2),
        (("plan",), "LX102", 2),
        (("status", "x" * 300), "LX205", 3),
    ],
)
def test_an_error_names_its_help(tmp_path: Path, arguments: tuple[str, ...], code: str, status: int) -> None:
    run = light(*arguments, cwd=tmp_path)
    assert (run.returncode, run.stdout) == (status, "")
    assert run.stderr.splitlines()[-1] == f"help: lynx-render help {code}"
    assert len(errors_of(run)) >= 1
    explained = light("help", code, cwd=tmp_path)
    assert (explained.returncode, explained.stderr) == (0, "")
    assert explained.stdout.startswith(f"{code}: **")


def test_several_codes_in_any_case(tmp_path: Path) -> None:
    both = light("help", "lx305", "LX101", "LX305", cwd=tmp_path).stdout
    assert [line[:5] for line in both.splitlines() if line.startswith("LX")] == ["LX305", "LX101"]
    assert "\n### " not in both
    assert "\n## " not in both


def test_an_unknown_code(tmp_path: Path) -> None:
    run = light("help", "LX3O5", "LX101", cwd=tmp_path)
    assert run.returncode == 2
    (line,) = errors_of(run)
    assert line.startswith("help LX3O5: no such command or code; did you mean 'LX305'? (codes: LX101, LX102, ")


def test_help_of_a_command_stays(tmp_path: Path) -> None:
    assert light("help", "plan", cwd=tmp_path).stdout == light("plan", "--help", cwd=tmp_path).stdout
    assert light("help", cwd=tmp_path).stdout == light("--help", cwd=tmp_path).stdout


def test_nothing_is_printed_where_nothing_failed(tmp_path: Path, demo: Path) -> None:
    assert light("plan", "demo", cwd=tmp_path).stderr == ""
