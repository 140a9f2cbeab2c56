"""lynx-render table: scores by variant, as a benchmark reports them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lynx_parallel.cli.help_text import OUTPUT
from lynx_parallel.cli.options import Debug, Json
from lynx_parallel.cli.target import TargetArgument, find_target
from lynx_parallel.text import shown_path


def table(
    target: TargetArgument = None,
    csv_file: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", help="Write a row for each video.", rich_help_panel=OUTPUT),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the scores of each variant, with intervals over subjects.

    The scores are those of lynx-render score. The table is in Markdown.

    Examples:
        lynx-render table renders/benchmark
        lynx-render table renders/benchmark --csv videos.csv
    """
    from lynx_parallel.output.atomic import atomic_write
    from lynx_parallel.view.table import as_csv, lines, make_table, scored_videos

    found = find_target(target)
    videos = scored_videos(found.output)
    made = make_table(videos)
    if csv_file is not None:
        with atomic_write(csv_file) as part:
            part.write_text(as_csv(videos, list(made.columns)), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps({"output": str(found.output.folder), **made.as_json()}))
        return
    if not made.columns:
        typer.echo(f"{found.shown}: no video has scores: run lynx-render score {found.shown}")
        raise typer.Exit(1)
    for line in lines(made):
        typer.echo(line)
    if csv_file is not None:
        typer.echo(f"videos: {shown_path(csv_file)}")
