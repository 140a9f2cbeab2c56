"""lynx-render report: an HTML page of everything that was rendered."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lynx_parallel.cli.options import Debug
from lynx_parallel.cli.target import TargetArgument, find_target
from lynx_parallel.errors import InputErrors, LynxError
from lynx_parallel.text import counted, in_words, shown_path
from lynx_parallel.view.lines import Lines

if TYPE_CHECKING:
    from collections.abc import Callable

    from lynx_parallel.inputs.manifest import Campaign
    from lynx_parallel.output.folder import Output


def report(
    target: TargetArgument = None,
    client: Annotated[
        bool, typer.Option("--client", help="Leave out reference crops, settings, scores, logs and reasons.")
    ] = False,
    inline: Annotated[
        bool, typer.Option("--inline", help="Put the pictures into the page. Videos stay files beside it.")
    ] = False,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="Write the page here; needs --inline.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write report.html, a page with all shots of a campaign.

    Posters, settings, timings, failures, comparison, review. It is in the output folder, and each run ends with it.

    Examples:
        lynx-render report campaign.yaml
        lynx-render report renders/spring --client --inline --out spring.html
    """
    from lynx_parallel.view.report import ReportOptions, write_report

    if out is not None and not inline:
        raise InputErrors(["--out: the page names its posters relative to the output folder: add --inline"])
    found = find_target(target)
    campaign = found.campaign
    make_missing_posters(found.output, Lines(sys.stderr))
    file = Path(os.path.abspath(out)) if out is not None else None
    path = write_report(found.output, campaign, ReportOptions(client=client, inline=inline, file=file))
    if campaign is None:
        Lines(sys.stderr)(f"{found.shown}: its last run cannot be read any more; the page shows finished shots alone")
    typer.echo(shown_path(path))


def end_with_report(
    manifest: str, campaign: Campaign, set_: list[str] | None, only: list[str] | None, say: Callable[[str], None]
) -> None:
    """Writes the report at the end of a run. An error is a warning, because the shots are done.

    Args:
        campaign: of the run, which lacks the shots that ``only`` leaves out.
    """
    from lynx_parallel.inputs.load import load_campaign
    from lynx_parallel.output.folder import Output
    from lynx_parallel.view.report import write_report

    output = Output(campaign.output)
    if not output.private.is_dir():
        return
    try:
        path = write_report(output, load_campaign(manifest, set_ or ()) if only else campaign)
    except (LynxError, OSError) as error:
        say(f"warning: no report could be written: {in_words(error)}")
    else:
        say(f"report: {shown_path(path)}")


def make_missing_posters(output: Output, say: Lines) -> None:
    """Makes the posters of finished shots that have none, from their videos. A video that cannot be read has none."""
    from lynx_parallel.view.report import missing_posters

    missing = missing_posters(output)
    if not missing:
        return
    from lynx_parallel.output.atomic import atomic_write
    from lynx_parallel.stages.poster import write_poster
    from lynx_parallel.stages.video import read_frames

    say(f"making {counted(len(missing), 'poster')} from the videos")
    for name in missing:
        try:
            frames = read_frames(output.path(name, "video"))
            output.poster(name).parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(output.poster(name)) as part:
                write_poster(frames, part)
        except (LynxError, OSError) as error:
            say(f"{name}: no poster: {error}")
