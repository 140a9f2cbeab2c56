"""Repeats a run from its record: ``lynx-render OUTPUT/.lynx/manifests/STAMP`` takes the options of that run."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from lynx_parallel.inputs.records import Request

_NOT_REPEATED = {
    "manifest", "set_", "only", "yes", "verify", "strict", "as_json", "quiet", "events",
    "metrics_file", "no_report", "review",
    "sample", "sample_only", "deadline", "card", "on_finish", "allow_blocked", "shard",
    "debug", "stop_after", "address", "help",
}  # fmt: skip
"""Parameters that do not change how shots are rendered, or that have a field of their own in the record."""


def with_recorded_options(arguments: Sequence[str], known: Collection[str]) -> list[str]:
    """Returns a command line in which the options of a recorded run come before those that are given.

    Args:
        arguments: the command and what follows it.
        known: options of the command.

    Raises:
        InputErrors: the record cannot be read.
    """
    from lynx_parallel.inputs.records import find_record

    for argument in arguments[1:]:
        if not argument.startswith("-") and (record := find_record(argument)):
            return [arguments[0], *record.arguments(known), *arguments[1:]]
    return list(arguments)


def request_of(context: typer.Context, command: Sequence[str]) -> Request:
    """Returns what a command line asked for.

    Args:
        context: of the command.
        command: the whole command line.
    """
    from lynx_parallel.inputs.records import Request

    options: list[tuple[str, ...]] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if source and source.name == "COMMANDLINE" and name not in _NOT_REPEATED:
            value = context.params[name]
            options.append((parameter.opts[0],) if value is True else (parameter.opts[0], str(value)))
    params = context.params
    sets = tuple(map(_as_recorded, params["set_"] or ()))
    return Request(tuple(command), sets, tuple(params["only"] or ()), tuple(options))


def _as_recorded(option: str) -> str:
    """Returns a value of ``--set`` that means the same in any working folder."""
    key, _, value = option.partition("=")
    return f"{key}={os.path.abspath(os.path.expanduser(value))}" if key == "subjects" else option
