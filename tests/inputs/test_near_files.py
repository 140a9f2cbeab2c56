"""What a missing file may have been called."""

from __future__ import annotations

from pathlib import Path

import pytest

from lynx_parallel.inputs.near_files import file_mistake, near_file
from tests.helpers.manifests import HEAD, PROMPTS, Complain


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("faces/ada.JPG", "; did you mean 'ada.jpg'?"),
        ("faces/adda.jpg", "; did you mean 'ada.jpg'?"),
        ("face/ada.jpg", "; did you mean 'faces'?"),
        ("faces/x.jpg", ""),
        ("none/none/ada.jpg", ""),
        ("faces/ada.jpg", ""),
    ],
)
def test_names(folder: Path, name: str, expected: str) -> None:
    assert near_file(name) == expected
    assert near_file(folder / name) == expected


def test_a_folder_that_cannot_be_read_gives_no_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert near_file(tmp_path / "file" / "name") == ""


def test_a_path_that_is_no_file(folder: Path) -> None:
    assert file_mistake(folder / "faces") == "not a regular file"
    assert file_mistake(folder / "facs") == "missing file; did you mean 'faces'?"


@pytest.mark.parametrize(
    ("subjects", "line"),
    [
        ("{from: faces/ada.JPG}", "subjects.from: 'faces/ada.JPG': matches no file; did you mean 'ada.jpg'?"),
        ("{from: faces/*.webp}", "subjects.from: 'faces/*.webp': matches no file"),
        ("{from: faces/poeple.csv}", "subjects.from: 'faces/poeple.csv': missing file; did you mean 'people.csv'?"),
        ("{ada: {image: faces/Ada.jpg}}", "subjects.ada.image: 'faces/Ada.jpg': missing file; did you mean 'ada.jpg'?"),
    ],
)
def test_in_a_manifest(folder: Path, complain: Complain, subjects: str, line: str) -> None:
    (folder / "faces" / "people.csv").write_text("id\n")
    assert complain(f"{HEAD}subjects: {subjects}\n{PROMPTS}")[0] == f"m.yaml:4: {line}"
