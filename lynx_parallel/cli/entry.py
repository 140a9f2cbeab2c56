"""lynx-render: registers the commands, runs one, and turns errors into lines and exit codes."""

from __future__ import annotations

import gc
import itertools
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from typing import Annotated, Any

import typer

import lynx_parallel
from lynx_parallel.cli.again import again
from lynx_parallel.cli.doctor import doctor
from lynx_parallel.cli.each import EachCommand, each
from lynx_parallel.cli.encode import encode
from lynx_parallel.cli.export import export
from lynx_parallel.cli.fetch import fetch
from lynx_parallel.cli.forget import forget
from lynx_parallel.cli.help import help, show_help
from lynx_parallel.cli.help_text import Command, Group
from lynx_parallel.cli.init import init
from lynx_parallel.cli.plan import plan
from lynx_parallel.cli.prune import prune
from lynx_parallel.cli.render import render
from lynx_parallel.cli.repeat import with_recorded_options
from lynx_parallel.cli.report import report
from lynx_parallel.cli.schema import schema
from lynx_parallel.cli.score import score
from lynx_parallel.cli.show import show
from lynx_parallel.cli.status import failures, status
from lynx_parallel.cli.table import table
from lynx_parallel.cli.takes import reroll, takes
from lynx_parallel.cli.usage import completed, usage_line
from lynx_parallel.cli.verify import verify
from lynx_parallel.engine.process import check_working_folder, discard_unwritten, ensure_home
from lynx_parallel.errors import USAGE_CODE, ClusterError, InputErrors, LynxError
from lynx_parallel.failures import code_of
from lynx_parallel.text import in_words
from lynx_parallel.view.lines import Lines, show_log

COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Render": (render, plan),
    "Look": (status, failures, report, show),
    "Measure": (score, table),
    "Choose takes": (reroll, takes, again),
    "Deliver": (export, each, encode),
    "Set up": (init, schema, fetch, doctor, help),
    "Clean up": (verify, prune, forget),
}
"""All commands by group, in the order in which help shows them. A new command needs a place here."""
COMPLETION = "_LYNX_RENDER_COMPLETE"
"""Environment variable by which a shell asks for completions. The command line is then in others."""

CLOSED_PIPE = 128 + signal.SIGPIPE
"""Exit code where the reader of stdout has ended, as in ``lynx-render plan … | head``: that of other programs."""

_HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="lynx-render",
    cls=Group,
    help="Renders a campaign of personalised videos. Run it again to resume, or after a change.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=_HELP,
)
for _group, _commands in COMMANDS.items():
    for _command in _commands:
        _class = EachCommand if _command is each else Command
        app.command(cls=_class, context_settings=_HELP, rich_help_panel=_group)(_command)

_UsageError: Any = typer.BadParameter.__mro__[1]
"""click's UsageError, or that of the copy of click in newer versions of typer."""


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"lynx-render {lynx_parallel.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None: ...


@cache
def command_group() -> Any:
    """Returns click's group of all commands."""
    return typer.main.get_command(app)


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code. ``lynx-render MANIFEST`` is ``lynx-render render MANIFEST``."""
    words: list[str] = []
    group = command_group()
    ours = list(itertools.takewhile(lambda word: word != "--", arguments))  # not those of the command of ``each``
    if "--debug" in ours:
        show_log(sys.stderr)
    try:
        if os.environ.get(COMPLETION):
            return group.main([], "lynx-render", COMPLETION, standalone_mode=False)
        if not {"-h", "--help", "--version"} & set(ours):
            check_working_folder()
            ensure_home()
        own = [*_HELP["help_option_names"], *(name for parameter in group.params for name in parameter.opts)]
        words = completed(arguments, group.commands, own)
        if words and words[0] in ("render", "plan", "verify"):
            command = group.commands[words[0]]
            words = with_recorded_options(words, {name for one in command.params for name in one.opts})
        if words and words[0] != "render":
            gc.disable()  # a short process: a tenth of its time
        with group.make_context("lynx-render", words) as context:
            return group.invoke(context) or 0
    except typer.Exit as ended:
        return ended.exit_code
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            return int(error.exit_code)
        return _refuse([usage_line(error, words, group)], int(error.exit_code), USAGE_CODE, ours)
    except (LynxError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None and discard_unwritten(sys.stdout):
            if isinstance(error, BrokenPipeError):
                return CLOSED_PIPE
            error.filename = "standard output"
        lines = error.lines if isinstance(error, InputErrors) else [in_words(error)]
        code = error.exit_code if isinstance(error, LynxError) else ClusterError.exit_code
        return _refuse(lines, code, code_of(error), ours)


def _refuse(lines: Sequence[str], code: int, help_code: str, arguments: Sequence[str]) -> int:
    """Prints why a command ends; with ``--json`` also as JSON on stdout, with ``--debug`` where.

    Args:
        code: the exit code, which is returned.
        help_code: see ``docs/troubleshooting.md``.
    """
    if "--debug" in arguments:
        traceback.print_exc()
    else:
        for line in lines:
            Lines(sys.stderr)(line)
        show_help([help_code])
    if "--json" in arguments:
        Lines(sys.stdout)(json.dumps({"errors": list(lines), "code": help_code, "exit_code": code}))
    return code
