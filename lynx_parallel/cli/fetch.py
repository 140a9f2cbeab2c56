"""lynx-render fetch PIPELINE."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated

import typer

from lynx_parallel.cli.complete import pipeline_names
from lynx_parallel.cli.interrupt import exit_code
from lynx_parallel.cli.options import Debug, Json, Quiet
from lynx_parallel.view.lines import Lines
from lynx_parallel.view.lines import Quiet as QuietLines


def fetch(
    pipeline: Annotated[
        str,
        typer.Argument(
            metavar="PIPELINE",
            help="Pipeline file, or the bare name of a shipped one (lynx-full).",
            autocompletion=pipeline_names,
        ),
    ],
    convert: Annotated[
        bool, typer.Option("--convert", help="Also store a copy of an fp32 transformer in the pipeline's dtype.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Download the weights and face models of PIPELINE.

    Checks each file and shows where it is stored. Run it again to resume.

    Examples:
        lynx-render fetch lynx-full
        lynx-render fetch lynx-full --convert
    """
    from lynx_parallel.fetch.fetch import fetch as fetch_all
    from lynx_parallel.inputs.pipeline_files import load_pipeline
    from lynx_parallel.text import shown_size

    stream = sys.stderr if as_json else sys.stdout
    say = Lines(stream)
    try:
        fetched = fetch_all(
            load_pipeline(pipeline),
            converting=convert,
            stream=None if quiet else stream,
            say=QuietLines(stream) if quiet else say,
        )
    except KeyboardInterrupt:
        say("stopped; what has arrived stays, run again to resume")
        stream.flush()
        os._exit(exit_code())  # does not wait for downloads that get no answer
    if as_json:
        typer.echo(json.dumps({"files": [vars(one) for one in fetched], "exit_code": 0}, default=str))
        return
    for one in fetched:
        typer.echo(f"{one.name:11}{shown_size(one.bytes):>9}  {one.source}, {one.license}: {one.path}")
