"""One line for a mistyped command line, with what was probably meant."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lynx_parallel.errors import InputErrors
from lynx_parallel.text import escaped

_OTHER_NAMES = {
    "check": "plan", "clean": "forget", "create": "init", "delete": "forget", "download": "fetch", "dry-run": "plan",
    "errors": "failures", "list": "status", "log": "status", "ls": "status", "new": "init", "progress": "status",
    "pull": "fetch", "remove": "forget", "resume": "render", "retry": "render", "rm": "forget", "run": "render",
    "seed": "reroll", "start": "render", "validate": "plan",
}  # fmt: skip
"""Commands that other programs call so, by that name."""
_EXTRA = re.compile(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", re.DOTALL)


def completed(arguments: Sequence[str], commands: Collection[str], options: Collection[str]) -> list[str]:
    """Returns the arguments with their command: ``MANIFEST`` is ``render MANIFEST``, ``help plan`` is ``plan --help``.

    Args:
        options: those before a command, such as ``--version``.

    Raises:
        InputErrors: the first argument is a mistyped command.
    """
    given = list(arguments)
    first = given[0] if given else ""
    if first == "help" and (not given[1:] or given[1] in commands):
        return [*given[1:2], "--help"]
    if not given or first in {*commands, *options}:
        return given
    if first.startswith("-") or not _is_name(first):
        return ["render", *given]
    if first == "version":
        return ["--version"]
    from lynx_parallel.inputs.shipped import shipped_names

    shipped = shipped_names("manifests")
    near = difflib.get_close_matches(first.casefold(), [*shipped, *commands], n=1)
    meant = near[0] if near else _OTHER_NAMES.get(first.casefold(), "")
    if first not in shipped and meant in commands:
        raise InputErrors([f"{first}: no such command; did you mean {meant!r}? (commands: {', '.join(commands)})"])
    return ["render", *given]


def refuse_commands(manifests: Sequence[str], context: Any) -> None:
    """Refuses a command in the place of a manifest, as in ``lynx-render campaign.yaml plan``.

    Args:
        context: typer's, of the command that got the manifests.

    Raises:
        InputErrors: with the right order.
    """
    commands = context.parent.command.commands if context.parent else ()
    for word in manifests:
        if word in commands and not os.path.lexists(word):
            others = [other for other in manifests if other != word]
            raise InputErrors([f"{word}: put the command first: lynx-render {' '.join([word, *others])}"])


def _is_name(word: str) -> bool:
    """Returns whether a word is no file or path: a command, or the name of a shipped manifest."""
    return not ("/" in word or word.endswith((".yaml", ".yml")) or os.path.lexists(word))


def usage_line(error: Any, arguments: Sequence[str], group: Any) -> str:
    """Returns a usage error in one line, with what was probably meant.

    Args:
        error: of typer's ``UsageError`` kind.
        arguments: the result of ``completed``, with the command first.
        group: typer's group of all commands.
    """
    kind, parameter = type(error).__name__, getattr(error, "param", None)
    name = str(getattr(error, "option_name", ""))
    first, rest = (arguments[0], list(arguments[1:])) if arguments else ("", [])
    if kind == "NoSuchOption":
        return _no_such_option(name, first, rest, group)
    if kind == "MissingParameter" and parameter is not None:
        usage = " ".join(error.ctx.get_usage().split()).removeprefix("Usage: ")
        return f"{first}: {parameter.metavar or parameter.name} is missing; usage: {usage}"
    if kind == "BadOptionUsage":
        found = (one.metavar or "VALUE" for one in _parameters(group.commands.get(first)) if name in one.opts)
        needs = f"needs a value: {name} {next(found, 'VALUE')}"
        return f"{name}: {needs if 'require' in error.message else 'takes no value'}"
    if kind == "BadParameter" and parameter is not None and "integer" in error.message:
        return f"{parameter.opts[0]} {escaped(_value_of(parameter.opts[0], rest))}: must be a whole number"
    if extra := _EXTRA.match(str(getattr(error, "message", ""))):
        return _unexpected(extra[1], first)
    return str(error.format_message())


def _no_such_option(option: str, command: str, rest: Sequence[str], group: Any) -> str:
    """Returns a line about an unknown option: a similar one, a setting, or the commands that have it."""
    commands: Mapping[str, Any] = group.commands
    known = _options(commands.get(command))
    if command == "render" and rest[:1] == [option]:  # perhaps no command was meant
        known += _options(group)
    shown = f"{escaped(option)}: no such option of {command}"
    if "--set" in known and (setting := _setting(option, rest)):
        return f"{shown}; settings are given as --set {setting}"
    longer = [name for name in known if name.startswith(option)]
    if near := longer or difflib.get_close_matches(option, known, n=1):
        return f"{shown}; did you mean {near[0]!r}?"
    if others := [name for name, other in commands.items() if option in _options(other)]:
        return f"{shown}; {' and '.join(others[:2])} {'have' if len(others) > 1 else 'has'} it"
    return f"{shown}; lynx-render {command} --help lists the options"


def _parameters(command: Any) -> list[Any]:
    return list(getattr(command, "params", ()))


def _options(command: Any) -> list[str]:
    return [name for parameter in _parameters(command) for name in parameter.opts if name.startswith("--")]


def _value_of(option: str, words: Sequence[str]) -> str:
    """Returns the value that follows an option in a command line, or nothing."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == option and not following.startswith("-"):
            return following
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return ""


def _setting(option: str, rest: Sequence[str]) -> str:
    """Returns ``KEY=VALUE`` where an option is a setting, ours or another program's; else nothing."""
    from lynx_parallel.inputs.aliases import ALIASES, suggest
    from lynx_parallel.inputs.overrides import SETTABLE

    name = option.lstrip("-").replace("-", "_")
    question, _, _ = suggest(name, SETTABLE).partition("? ")
    key = question.removeprefix("did you mean ").strip("'")
    similar = name in ALIASES or difflib.get_close_matches(name, [key.rpartition(".")[2]])
    if key not in SETTABLE or len(name) < 3 or not similar:
        return ""
    return f"{key}={_value_of(option, rest) or 'VALUE'}"


def _unexpected(extra: str, command: str) -> str:
    """Returns a line about words that a command does not take."""
    hints = {"fetch": "one pipeline at a time", "doctor": "one pipeline at a time", "each": "put -- before the command"}
    hint = hints.get(command, f"see lynx-render {command} --help")
    return f"{escaped(extra)}: unexpected argument; {hint}"
