"""lynx-render: registers the commands, runs one, and turns errors into lines and exit codes."""

from __future__ import annotations

import gc
import itertools
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import lynx_parallel
from lynx_parallel.cli.doctor import doctor
from lynx_parallel.cli.each import EachCommand, each
from lynx_parallel.cli.encode import encode
from lynx_parallel.cli.export import export
from lynx_parallel.cli.fetch import fetch
from lynx_parallel.cli.forget import forget
from lynx_parallel.cli.plan import plan
from lynx_parallel.cli.render import render
from lynx_parallel.cli.repeat import with_recorded_options
from lynx_parallel.cli.report import report
from lynx_parallel.cli.status import failures, status
from lynx_parallel.cli.takes import reroll, takes
from lynx_parallel.cli.usage import completed, meant
from lynx_parallel.cli.verify import verify
from lynx_parallel.engine.process import check_working_folder, discard_unwritten, ensure_home
from lynx_parallel.errors import ClusterError, LynxError
from lynx_parallel.text import in_words
from lynx_parallel.view.lines import Lines, show_log

_HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="lynx-render",
    help="Renders a campaign of personalised videos: lynx-render MANIFEST is short for lynx-render render MANIFEST.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=_HELP,
)
for command in (
    render, plan, status, failures, report, reroll, takes, verify, forget, export, each, encode, doctor, fetch,
):  # fmt: skip
    app.command(context_settings=_HELP, cls=EachCommand if command is each else None)(command)

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


def _options_of(command: str) -> set[str]:
    """Returns the options of a command: ``--set``, for example."""
    group = typer.main.get_group(app)
    found = group.get_command(typer.Context(group), command)
    return {name for parameter in found.params for name in parameter.opts} if found else set()


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code. ``lynx-render MANIFEST`` is ``lynx-render render MANIFEST``."""
    commands = [command.callback.__name__ for command in app.registered_commands if command.callback]
    words: list[str] = []
    own = set(itertools.takewhile(lambda word: word != "--", arguments))  # not those of the command of each
    if "--debug" in own:
        show_log(sys.stderr)
    try:
        if not {"-h", "--help", "--version"} & own:
            check_working_folder()
            ensure_home()
        words = completed(arguments, commands)
        if words and words[0] in ("render", "plan", "verify"):
            words = with_recorded_options(words, _options_of(words[0]))
        if words and words[0] != "render":
            gc.disable()  # a short process: a tenth of its time
        return app(words, prog_name="lynx-render", standalone_mode=False) or 0
    except _UsageError as error:
        if hint := meant(error, words, commands):
            error.message += hint
            error.possibilities = None  # options with similar names
        error.show()
        return int(error.exit_code)
    except (LynxError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None and discard_unwritten(sys.stdout):
            error.filename = "standard output"
        if "--debug" in own:
            traceback.print_exc()
        else:
            Lines(sys.stderr)(in_words(error))
        return error.exit_code if isinstance(error, LynxError) else ClusterError.exit_code
