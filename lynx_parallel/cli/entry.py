"""lynx-render: registers the commands, runs one, and turns errors into lines and exit codes."""

from __future__ import annotations

import io
import sys
import traceback
from typing import Annotated, TypeGuard

import typer

import lynx_parallel
from lynx_parallel.cli.doctor import doctor
from lynx_parallel.cli.fetch import fetch
from lynx_parallel.cli.forget import forget
from lynx_parallel.cli.plan import plan
from lynx_parallel.cli.render import render
from lynx_parallel.errors import ClusterError, LynxError

app = typer.Typer(
    name="lynx-render",
    help="Renders a campaign of personalised videos: lynx-render MANIFEST is short for lynx-render render MANIFEST.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (render, plan, forget, doctor, fetch):
    app.command()(command)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"lynx-render {lynx_parallel.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None: ...


def _names_file(error: Exception) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.filename is not None and error.strerror is not None


def main() -> None:
    """Runs the command line. ``lynx-render MANIFEST`` is ``lynx-render render MANIFEST``."""
    arguments = sys.argv[1:]
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    if arguments and arguments[0] not in {*commands, "--help", "--version"}:
        arguments.insert(0, "render")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: no name may stop a run in a narrow locale
    try:
        app(arguments, prog_name="lynx-render")
    except (LynxError, OSError) as error:
        if "--debug" in arguments:
            traceback.print_exc()
        else:
            print(f"{error.filename}: {error.strerror}" if _names_file(error) else error, file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, LynxError) else ClusterError.exit_code)
