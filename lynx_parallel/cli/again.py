"""lynx-render again: the manifest that renders a finished video again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lynx_parallel.cli.options import Debug
from lynx_parallel.cli.show import Folder
from lynx_parallel.text import shown_path


def again(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="A video, its file of latents or its sidecar.")],
    output: Folder = None,
    to: Annotated[
        Path | None, typer.Option("-o", "--to", metavar="FILE", help="Manifest to write; default SHOT-again.yaml here.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write the manifest that renders a video again.

    It names the recorded inputs and settings. The command says whether they still give the same digest.

    Examples:
        lynx-render again renders/spring/ada/beach-t01.mp4
        lynx-render again delivery/ada_beach.mp4 --output renders/spring -o ada.yaml
    """
    from lynx_parallel.cli.load import load
    from lynx_parallel.inputs.again import shot_of, write_again
    from lynx_parallel.inputs.made_by import find_made_by
    from lynx_parallel.plan.digests import changed

    made = find_made_by(video, output)
    campaign, shot = shot_of(made)
    target = to or Path(f"{shot.name.replace('/', '-')}-again.yaml")
    paths = write_again(campaign, shot, target)
    typer.echo(f"written: {', '.join(map(shown_path, paths))}")
    [item] = load(str(target), None, None, False, download=False).replan().items
    sidecar = made.sidecar
    assert sidecar is not None
    if item.action == "unknown":
        typer.echo("weights are missing on this machine: whether they give the same digest is not known")
    elif item.digests.latents == sidecar["digests"]["latents"]:
        typer.echo(f"same digest: {item.digests.latents}; lynx-render {shown_path(target)} gives the same latents")
    else:
        names = ", ".join(changed(sidecar["settings"], item.digests.settings)) or "unknown"
        typer.echo(f"warning: another digest than the video has: changed: {names}", err=True)
        raise typer.Exit(1)
