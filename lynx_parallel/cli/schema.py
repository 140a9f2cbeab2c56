"""lynx-render schema [manifest|pipeline|takes|site]."""

from __future__ import annotations

from typing import Annotated

import typer

from lynx_parallel.cli.complete import schema_names
from lynx_parallel.cli.options import Debug
from lynx_parallel.errors import InputErrors


def schema(
    file: Annotated[
        str,
        typer.Argument(
            metavar="KIND", help="Kind of file: manifest, pipeline, takes or site.", autocompletion=schema_names
        ),
    ] = "manifest",
    debug: Debug = False,
) -> None:
    """Print the JSON Schema of a manifest, for editors.

    Editors with the YAML language server complete and check keys. Name the schema in the first line of a file:
    # yaml-language-server: $schema=manifest.schema.json

    Examples:
        lynx-render schema > manifest.schema.json
        lynx-render schema pipeline > pipeline.schema.json
    """
    from lynx_parallel.inputs.problems import nearest
    from lynx_parallel.inputs.schema import FILES, schema_text

    if file not in FILES:
        raise InputErrors([f"schema {file}: no such kind of file; {nearest(file, FILES, 'kinds')}"])
    typer.echo(schema_text(file), nl=False)
