"""lynx-render forget SUBJECT."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lynx_parallel.cli.options import Debug, Json


def forget(
    subjects: Annotated[list[str], typer.Argument(metavar="SUBJECT", help="Ids of subjects, as in the manifest.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove the cached face data of subjects; list the videos that remain of them."""
    from lynx_parallel import subjects as cached

    forgotten = cached.forget(subjects)
    code = int(any(one.left for one in forgotten))
    if as_json:
        typer.echo(json.dumps({"subjects": list(map(vars, forgotten)), "exit_code": code}, default=str))
        raise typer.Exit(code)
    for one in forgotten:
        if not one.known:
            typer.echo(f"{one.subject}: nothing was cached for this subject")
            continue
        typer.echo(f"{one.subject}: cached face data removed{', except what a warning names' * bool(one.left)}")
        for path in one.videos:
            typer.echo(path)
        rest = "left for you to delete, with the .json and .latents.safetensors beside each"
        typer.echo(f"{one.subject}: videos that remain: {len(one.videos)}{f', {rest}' * bool(one.videos)}")
    raise typer.Exit(code)
