"""Suggestions for a mistyped command line."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Sequence

from lynx_parallel.errors import InputErrors


def completed(arguments: Sequence[str], commands: Collection[str]) -> list[str]:
    """Returns the arguments with their command: ``MANIFEST`` is ``render MANIFEST``, ``help plan`` is ``plan --help``.

    Raises:
        InputErrors: the first argument is a mistyped command.
    """
    given = list(arguments)
    if not given or given[0] in {*commands, "--help", "-h", "--version"}:
        return given
    first = given[0]
    if first.startswith("-") or not _is_name(first):
        return ["render", *given]
    if first in ("help", "version"):
        return [*given[1:2], "--help"] if first == "help" else ["--version"]
    from lynx_parallel.inputs.shipped import shipped_names

    shipped = shipped_names("manifests")
    near = difflib.get_close_matches(first.casefold(), [*shipped, *commands], n=1)
    if first not in shipped and near and near[0] in commands:
        raise InputErrors([f"{first}: no such command; did you mean {near[0]!r}? (commands: {', '.join(commands)})"])
    return ["render", *given]


def _is_name(word: str) -> bool:
    """Returns whether a word is no file or path: a command, or the name of a shipped manifest."""
    return not ("/" in word or word.endswith((".yaml", ".yml")) or os.path.lexists(word))


def meant(error: Exception, arguments: Sequence[str], commands: Collection[str]) -> str:
    """Returns what to add to a usage error's message: what was probably meant, or nothing.

    Args:
        error: of typer's ``UsageError`` kind.
        arguments: the result of ``completed``, with the command first.
    """
    command, rest = arguments[0] if arguments else "", list(arguments[1:])
    if type(error).__name__ == "NoSuchOption":
        return _setting(str(getattr(error, "option_name", "")), rest)
    if not str(getattr(error, "message", "")).startswith("Got unexpected extra argument"):
        return ""
    if command == "render" and rest and _is_name(rest[0]) and not {*rest} & {*commands}:
        return f"; {rest[0]!r} is neither a command ({', '.join(commands)}) nor a manifest"
    if command == "render" and (later := [word for word in rest if word in commands]):
        others = [word for word in rest if word != later[0]]
        return f"; put the command first: lynx-render {' '.join([later[0], *others])}"
    if command == "each":
        return "; put -- before the command"
    return "; one manifest or pipeline at a time" if command in ("render", "plan", "fetch", "doctor") else ""


def _setting(option: str, rest: Sequence[str]) -> str:
    """Returns a suggestion where an option is a setting, ours or another program's."""
    from lynx_parallel.inputs.aliases import suggest
    from lynx_parallel.inputs.overrides import SETTABLE

    name = option.lstrip("-").replace("-", "_")
    question, _, _ = suggest(name, SETTABLE).partition("? ")
    key = question.removeprefix("did you mean ").strip("'")
    if key not in SETTABLE or len(name) < 3:
        return ""
    value = next((word.partition("=")[2] for word in rest if word.startswith(f"{option}=")), "") or "VALUE"
    if option in rest and (after := rest[rest.index(option) + 1 : rest.index(option) + 2]) and after[0][:1] != "-":
        value = after[0]
    return f"; settings are given as --set {key}={value}"
