"""The rooms of the package and the arrows between them.

A room is a module or a folder directly below ``lynx_parallel``. ``pytest -s`` prints the graph.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from functools import cache
from graphlib import TopologicalSorter

import pytest

from tests.helpers.repository import REPOSITORY

PACKAGE = REPOSITORY / "lynx_parallel"
MOST_ROOMS = 18
MOST_LINES = 300

# fmt: off
ALLOWED: dict[str, set[str]] = {
    # Room: the rooms that it may import, from the command line down to the leaves.
    "cli": {
        "doctor", "fetch", "engine", "plan", "stages", "subject", "view", "inputs", "output", "failures", "errors",
        "text",
    },
    "doctor": {"rank", "model", "plan", "demo", "inputs", "failures", "errors", "text"},
    "fetch": {"plan", "view", "inputs", "output", "failures", "errors", "text"},
    "engine": {"rank", "plan", "inputs", "output", "failures", "errors", "text"},
    "rank": {"pipeline", "parallel", "stages", "subject", "model", "inputs", "output", "failures", "errors", "text"},
    "pipeline": {"stages", "subject", "model", "plan", "inputs"},
    "parallel": {"stages", "model", "inputs"},
    "stages": {"subject", "model", "inputs", "output", "errors", "text"},
    "plan": {"demo", "inputs", "output", "errors", "text"},
    "demo": {"subject", "inputs", "errors"},
    "subject": {"inputs", "output", "errors", "text"},
    "model": {"inputs", "output", "errors", "text"},
    "view": {"inputs", "output", "text"},
    "inputs": {"output", "errors", "text"},
    "output": {"errors"},
    "failures": {"errors", "text"},
    "errors": set(),
    "text": set(),
}
# fmt: on
RANK_MESSAGES = {"rank.actor", "rank.environment", "rank.messages"}
"""The modules of ``rank`` that the driver process may import."""
NO_TORCH = ("cli", "engine", "fetch", "view", "plan", "output", "inputs", "failures", "errors", "text")
"""Rooms of the driver process, which never imports torch."""
NO_RAY = tuple(room for room in NO_TORCH if room != "engine")


@cache
def modules() -> dict[str, ast.Module]:
    """Every module by its name below the package, parsed; the package itself is left out."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if name != "__init__":
            found[name] = ast.parse(path.read_text(), str(path))
    return found


@cache
def imports() -> dict[str, set[str]]:
    """The modules of this package that each module imports, also within functions and for types alone."""
    found: dict[str, set[str]] = {}
    for name, tree in modules().items():
        named = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "lynx_parallel":
                base = (node.module or "").removeprefix("lynx_parallel").removeprefix(".")
                named |= {f"{base}.{alias.name}".strip(".") for alias in node.names}
            elif isinstance(node, ast.Import):
                names = (alias.name for alias in node.names)
                named |= {name.partition(".")[2] for name in names if name.startswith("lynx_parallel.")}
        found[name] = {_module(one) for one in named} - {""}
    return found


def _module(name: str) -> str:
    """The module in which a dotted name stands; empty for a name of the package itself, such as ``__version__``."""
    while name and name not in modules():
        name = name.rpartition(".")[0]
    return name


def room(module: str) -> str:
    return module.partition(".")[0]


@cache
def arrows() -> dict[str, dict[str, list[str]]]:
    """Imports between rooms: room, imported room, and the imports as ``module -> module``."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for module, imported in imports().items():
        for other in sorted(imported):
            if room(module) != room(other):
                found[room(module)][room(other)].append(f"{module} -> {other}")
    return found


def test_the_rooms() -> None:
    rooms = {room(module) for module in modules()}
    print(f"\n{len(rooms)} rooms, {len(modules())} modules")
    for name in ALLOWED:
        print(f"  {name:10} -> {', '.join(sorted(arrows()[name]))}")
    assert rooms == set(ALLOWED), "a new room needs a line in ALLOWED, and in CONTRIBUTING.md"
    assert len(rooms) <= MOST_ROOMS


def test_no_arrow_but_the_allowed_ones() -> None:
    wrong = [
        line
        for name, others in arrows().items()
        for other, lines in others.items()
        if other not in ALLOWED[name]
        for line in lines
    ]
    assert not wrong, "\n".join(wrong)


def test_every_allowed_arrow_is_used() -> None:
    """A list that allows more than there is would hide the next arrow."""
    unused = {(name, other) for name, others in ALLOWED.items() for other in others if other not in arrows()[name]}
    assert not unused


def test_rooms_have_no_cycle() -> None:
    assert list(TopologicalSorter(ALLOWED).static_order())  # raises CycleError


def test_modules_have_no_cycle() -> None:
    packages = {name for name in modules() if any(other.startswith(f"{name}.") for other in modules())}
    graph = {name: others - packages - {name} for name, others in imports().items()}
    assert list(TopologicalSorter(graph).static_order())


def test_engine_and_rank_know_each_other_by_messages_alone() -> None:
    crossing = {other for name in arrows() if name == "engine" for other in _imported_from("engine", "rank")}
    assert crossing <= RANK_MESSAGES, crossing - RANK_MESSAGES
    assert not _imported_from("rank", "engine")


def _imported_from(name: str, other: str) -> set[str]:
    return {line.partition(" -> ")[2] for line in arrows()[name].get(other, [])}


@pytest.mark.parametrize(("package", "rooms"), [("torch", NO_TORCH), ("ray", NO_RAY)])
def test_rooms_that_do_not_import(package: str, rooms: tuple[str, ...]) -> None:
    """Importing every module of these rooms imports neither torch nor, but for the engine, Ray."""
    light = {name for name in modules() if room(name) in rooms} | (RANK_MESSAGES - {"rank.actor"})
    names = [f"lynx_parallel.{name}" for name in sorted(light) if not name.endswith("__main__")]
    code = (
        f"import sys, importlib\nfor name in {names!r}:\n    importlib.import_module(name)\n"
        f"    assert {package!r} not in sys.modules, name"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


def test_modules_are_short() -> None:
    long = {
        str(path.relative_to(REPOSITORY)): count
        for path in PACKAGE.rglob("*.py")
        if (count := len(path.read_text().splitlines())) > MOST_LINES
    }
    assert not long
