"""How help is shown: commands and options in groups, examples at the end. Without rich, whose import takes long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from typer.core import TyperCommand, TyperGroup

from lynx_parallel.cli.complete import shipped_manifests

SHOTS, LAYOUT, MEMORY = "Shots", "Layout", "Memory and speed"
MACHINE, STOPPING, ESTIMATE, OUTPUT = "Machine", "Stopping and saving", "Estimate", "Output"
GROUPS = (SHOTS, LAYOUT, MEMORY, MACHINE, STOPPING, ESTIMATE, OUTPUT)
"""Groups of options, in the order in which help shows them: the values of ``rich_help_panel``."""
MOST_COLUMNS = 24
"""Columns of the names of options. A longer name has a line of its own."""


class Completion(NamedTuple):
    """A word for the shell to complete, with the attributes of click's ``CompletionItem``."""

    value: str
    help: str
    type: str = "plain"


class Command(TyperCommand):
    """A command whose docstring may end with ``Examples:`` and indented command lines.

    Options are shown in the groups that their ``rich_help_panel`` names.
    """

    def __init__(self, name: str | None, *, help: str | None = None, **settings: Any):
        text, _, examples = (help or "").partition("\n\nExamples:\n")
        super().__init__(name, help=text, **settings)
        self.examples = [line.removeprefix("    ") for line in examples.splitlines()]

    def get_short_help_str(self, limit: int = 45) -> str:
        """Returns the first line of the help, whole."""
        return (self.help or "").partition("\n")[0]

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Returns the parts of the usage line, without typer's braces around what is required."""
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes arguments and options in groups."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if shown := parameter.get_help_record(ctx):
                argument = parameter.param_type_name == "argument"
                group = getattr(parameter, "rich_help_panel", None) or ("Arguments" if argument else "Options")
                name = shown[0].partition(" <")[0] if argument else shown[0]  # without its type
                groups.setdefault(group, []).append((name, shown[1]))
        _write_groups({group: groups[group] for group in sorted(groups, key=_place)}, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Writes the examples."""
        _write_examples(self.examples, formatter)


class Group(TyperGroup):
    """All commands. A word that is no command is a manifest to render.

    Commands are shown in the groups that their ``rich_help_panel`` names, in the order of their first commands.
    """

    examples: Sequence[str] = (
        "lynx-render demo                 render the shipped demo, offline",
        "lynx-render init faces           write a manifest for a folder of pictures",
        "lynx-render plan campaign.yaml   show what would be rendered",
        "lynx-render campaign.yaml        render, or resume",
        "lynx-render plan --help          show the options of a command",
    )

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses options before a command. For the shell's completion, ``MANIFEST …`` is ``render MANIFEST …``."""
        own = (name for parameter in self.get_params(ctx) for name in parameter.opts)
        if ctx.resilient_parsing and args and args[0] not in {*self.commands, *own}:
            args = ["render", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Returns commands and shipped manifests, or options."""
        found = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("-"):
            return found
        return [*found, *(Completion(name, "a shipped manifest") for name in shipped_manifests(incomplete))]

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        formatter.write_usage(ctx.command_path, "MANIFEST [OPTIONS]")
        formatter.write_usage(ctx.command_path, "COMMAND [ARGUMENTS] [OPTIONS]", prefix="       ")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the commands in groups, then the options."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                group = getattr(command, "rich_help_panel", None) or "Commands"
                groups.setdefault(group, []).append((name, command.get_short_help_str()))
        _write_groups(groups, formatter)
        shown = [parameter.get_help_record(ctx) for parameter in self.get_params(ctx)]
        _write_groups({"Options": [row for row in shown if row]}, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Writes the examples."""
        _write_examples(self.examples, formatter)


def _place(group: str) -> int:
    """Returns the place of a group of options. Arguments come first. Options in no group come last."""
    order = ("Arguments", *GROUPS)
    return order.index(group) if group in order else len(order)


def _write_groups(groups: dict[str, list[tuple[str, str]]], formatter: Any) -> None:
    """Writes groups of names and texts. The texts of all groups start in one column."""
    names = [name for rows in groups.values() for name, _ in rows]
    width = max((len(name) for name in names if len(name) <= MOST_COLUMNS), default=0)
    for group, rows in groups.items():
        with formatter.section(group):
            formatter.write_dl([(f"{name:{width}}", text) for name, text in rows], col_max=width)


def _write_examples(examples: Iterable[str], formatter: Any) -> None:
    """Writes examples as they are, never wrapped, so that they can be copied."""
    lines = list(examples)
    if lines:
        with formatter.section("Examples"):
            for line in lines:
                formatter.write(f"  {line}\n")
