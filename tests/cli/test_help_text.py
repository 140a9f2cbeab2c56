"""Help: commands and options in groups, whole descriptions in 80 columns, examples that are valid command lines."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from lynx_parallel.cli.entry import COMMANDS, command_group
from lynx_parallel.cli.help_text import GROUPS, Group
from lynx_parallel.cli.usage import completed
from tests.helpers.light_command import light

GROUP = command_group()
NAMES = list(GROUP.commands)
OF_GROUPS = {typer.main.get_command_name(one.__name__): group for group, some in COMMANDS.items() for one in some}


def sections(text: str) -> dict[str, list[str]]:
    """Returns the lines of each section of a help text, by its heading."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if heading := re.fullmatch(r"([A-Z][\w ]*):", line):
            found[heading[1]] = []
        elif found and line:
            found[list(found)[-1]].append(line)
    return found


def test_every_command_is_in_a_group() -> None:
    assert OF_GROUPS.keys() == set(NAMES)
    for name, command in GROUP.commands.items():
        assert command.rich_help_panel == OF_GROUPS[name]


def test_the_list_of_commands(tmp_path: Path) -> None:
    run = light("--help", cwd=tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("Usage: lynx-render MANIFEST [OPTIONS]\n       lynx-render COMMAND ")
    found = sections(run.stdout)
    assert list(found) == [*COMMANDS, "Options", "Examples"]
    for name, command in GROUP.commands.items():
        [line] = [line for line in found[OF_GROUPS[name]] if line.split()[0] == name]
        assert line.endswith(f" {command.get_short_help_str()}"), "the description fits on the command's line"
        assert command.get_short_help_str().endswith(".")
    assert max(map(len, run.stdout.splitlines())) <= 80


@pytest.mark.parametrize("name", NAMES)
def test_the_help_of_a_command(name: str, tmp_path: Path) -> None:
    run = light(name, "--help", cwd=tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith(f"Usage: lynx-render {name} [OPTIONS]")
    assert max(map(len, run.stdout.splitlines())) <= 80
    assert not re.search(r"…|[a-z]\.\.\.$|\{[A-Z]|<\w+>", run.stdout, re.M)
    found = sections(run.stdout)
    known = ("Arguments", *GROUPS, "Options", "Examples")
    assert list(found) == [section for section in known if section in found], "in this order"
    shown = {word for lines in found.values() for line in lines for word in re.findall(r"(?:^  |, )(--[\w-]+)", line)}
    assert {option for one in GROUP.commands[name].params for option in one.opts if option[:2] == "--"} <= shown


def test_options_of_render_and_plan_are_in_groups(tmp_path: Path) -> None:
    for name in ("render", "plan"):
        found = sections(light(name, "--help", cwd=tmp_path).stdout)
        assert set(GROUPS) <= found.keys()
        assert [line.split()[0] for line in found["Options"]] == ["-h,"], "each other option has a group"
        assert any(line.startswith("  --ulysses N ") for line in found["Layout"])


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_command_lines(name: str) -> None:
    """Each one parses as an example of this command. A remark follows after two spaces."""
    command = GROUP.commands[name]
    assert command.examples
    for example in command.examples:
        program, *arguments = shlex.split(re.split(r" {2,}| > ", example)[0])
        assert program == "lynx-render"
        words = completed(arguments, NAMES, ["--help"])
        assert words[0] == name
        assert command.make_context(name, words[1:]).params


def test_examples_of_the_whole_are_command_lines() -> None:
    for example in Group.examples:
        _, *arguments = shlex.split(re.split(r" {2,}| > ", example)[0])
        assert completed(arguments, NAMES, ["--help"])[0] in NAMES


def test_help_imports_no_rich(tmp_path: Path) -> None:
    """Its import takes longer than all of ours."""
    import subprocess
    import sys

    code = "import sys; from lynx_parallel.cli.entry import run; run(['--help']); sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
