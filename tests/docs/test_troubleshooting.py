"""Each code of an error has a section in docs/troubleshooting.md, and each message that it quotes can be printed."""

from __future__ import annotations

import ast
import errno
import importlib
import inspect
import os
import re
from collections.abc import Iterator
from functools import cache

import pytest
import typer

from lynx_parallel import errors, failures
from lynx_parallel.cli.help import PAGE, sections_of
from lynx_parallel.inputs.shipped import shipped_text
from tests.helpers.repository import REPOSITORY

SECTIONS = sections_of(shipped_text(PAGE))
MODULES = ("engine.cluster", "engine.placement", "inputs.picture_file")
"""Modules with error classes of their own."""
CAUSES = {cause.code for cause in failures._CAUSES}


def classes(base: type[errors.LynxError] = errors.LynxError) -> Iterator[type[errors.LynxError]]:
    """Yields all error classes below a base."""
    for module in MODULES:
        importlib.import_module(f"lynx_parallel.{module}")
    for one in base.__subclasses__():
        yield one
        yield from classes(one)


def codes() -> set[str]:
    constants = {value for name, value in vars(errors).items() if name.endswith("_CODE")}
    return {one.code for one in classes()} | constants | set(errors.KIND_CODES.values()) | CAUSES


@cache
def printed() -> list[str]:
    """Returns every text in the package's modules, and in typer's errors; ``…`` stands for a value."""
    sources = [path.read_text() for path in (REPOSITORY / "lynx_parallel").rglob("*.py")]
    usage = inspect.getmodule(typer.BadParameter.__mro__[1])
    assert usage is not None
    sources.append(inspect.getsource(usage))
    texts = []
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return [*texts, *map(os.strerror, errno.errorcode)]


def can_be_printed(message: str) -> bool:
    """Returns whether each fixed part of a message is found in a text. Some messages are put together of several."""
    parts = [part.strip(" .:,;'") for part in message.split("…")]
    return any(parts) and all(any(part in text for text in printed()) for part in parts)


def test_every_code_has_a_section_and_every_section_a_code() -> None:
    assert set(SECTIONS) == codes()
    assert len(set(SECTIONS)) == shipped_text(PAGE).count("\n### LX")


def test_every_error_class_has_a_code() -> None:
    # Ray makes classes of its own of those that its workers raised.
    found = [one for one in classes() if one.__module__.startswith("lynx_parallel.")]
    assert len(found) >= 15
    assert all(re.fullmatch(r"LX\d{3}", one.code) for one in found)
    own = {one.__name__ for one in found if "code" not in vars(one)}
    assert own == {"HeicUnreadable", "OutsideLandmarks"}, "subjects that cannot be used, whatever the reason"


@pytest.mark.parametrize("code", SECTIONS)
def test_a_section_says_what_it_means_and_quotes_messages(code: str) -> None:
    text = SECTIONS[code]
    assert re.match(r"\*\*[^*]+\*\*", text)
    (block,) = re.findall(r"```text\n(.*?)```", text, re.S)
    external = {line for line in block.splitlines() if failures.code_of_reason(line, "") == code}
    wrong = [line for line in block.splitlines() if line not in external and not can_be_printed(line)]
    assert not wrong
    if code.startswith("LX4"):  # messages of others, which are recognised
        assert external == set(block.splitlines())


def test_the_table_of_exit_codes_names_every_code() -> None:
    table = shipped_text(PAGE).partition("| exit code |")[2].partition("\n\n")[0]
    named: set[str] = set()
    for first, last in re.findall(r"LX(\d+)(?: to LX(\d+))?", table):
        named |= {f"LX{number}" for number in range(int(first), int(last or first) + 1)}
    assert set(SECTIONS) <= named


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InputErrors(["m.yaml:1: x: No such file or directory"]), "LX101"),
        (errors.ClusterError("no ranks could be started: NCCL error"), "LX410"),
        (errors.ClusterError("Linux arm64: lynx-render runs on Linux x86-64"), "LX201"),
        (errors.FolderInUse("out: another driver is at work here"), "LX202"),
        (errors.SubjectError("a.jpg: cannot be read: Permission denied"), "LX301"),
        (errors.RenderError("RuntimeError: x"), "LX302"),
        (errors.RenderError("no step for 60 s", "hung"), "LX304"),
        (errors.RenderError("CUDA error: no kernel image is available", "died"), "LX401"),
        (OSError(errno.EISDIR, os.strerror(errno.EISDIR), "out"), "LX205"),
        (OSError(errno.EACCES, os.strerror(errno.EACCES), "out"), "LX415"),
    ],
)
def test_an_error_has_the_code_of_its_cause_else_of_its_class(error: Exception, code: str) -> None:
    assert failures.code_of(error) == code
