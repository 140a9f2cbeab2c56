"""lynx-render reroll and takes: new seeds for takes, and the file that keeps them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lynx_parallel.cli.options import Debug
from lynx_parallel.cli.target import From, Target, find_target
from lynx_parallel.errors import InputErrors
from lynx_parallel.text import shown_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from lynx_parallel.inputs.manifest import Campaign, Shot


def reroll(
    shots: Annotated[list[str], typer.Argument(metavar="SHOT", help="Names of shots, such as ada/beach-t02.")],
    from_: From = None,
    debug: Debug = False,
) -> None:
    """Give takes another seed.

    The next render makes them again and moves the old files to .lynx/superseded/.

    Examples:
        lynx-render reroll ada/beach-t02
        lynx-render reroll ada/beach-t02 drawn/beach-t01 --from campaign.yaml
    """
    from lynx_parallel.inputs.review import reroll_shots

    target = find_target(from_)
    campaign = _campaign(target)
    chosen = [_shot(campaign, name) for name in dict.fromkeys(shots)]
    for shot, take in zip(chosen, reroll_shots(target.output, campaign, chosen), strict=True):
        typer.echo(f"{shot.name}: seed {shot.seed} → {take.seed}")
    typer.echo("render again to make them")


def takes(
    action: Annotated[
        str,
        typer.Argument(metavar="export", help="export: write the takes as YAML.", autocompletion=lambda: ["export"]),
    ],
    file: Annotated[str | None, typer.Argument(metavar="FILE", help="File to write; default: standard output.")] = None,
    from_: From = None,
    debug: Debug = False,
) -> None:
    """Export the takes of an output folder to a file.

    Commit the file, and name it in a manifest: takes: FILE.

    Examples:
        lynx-render takes export
        lynx-render takes export takes.yaml --from campaign.yaml
    """
    from lynx_parallel.inputs.takes_file import takes_as_yaml
    from lynx_parallel.output.atomic import atomic_write
    from lynx_parallel.output.takes import read_takes

    if action != "export":
        raise InputErrors([f"takes {action}: must be takes export"])
    text = takes_as_yaml(read_takes(find_target(from_).output.takes))
    if file is None:
        typer.echo(text, nl=False)
        return
    path = Path(os.path.abspath(file))
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")
    typer.echo(f"{shown_path(path)}: written; name it in the manifest: takes: {path.name}")


def _campaign(target: Target) -> Campaign:
    if target.campaign is None:
        raise InputErrors([f"{target.shown}: its last run cannot be read any more: add --from MANIFEST"])
    return target.campaign


def _shot(campaign: Campaign, name: str) -> Shot:
    from lynx_parallel.inputs.problems import nearest

    found = next((shot for shot in campaign.shots if shot.name == name), None)
    if found is None:
        raise InputErrors([f"{name}: no such shot; {nearest(name, [shot.name for shot in campaign.shots], 'shots')}"])
    return found


def review_takes(manifest: str, set_: list[str] | None, file: str, say: Callable[[str], None]) -> None:
    """Applies a report's ``review.csv``: accepts what it picks, rerolls what it rejects.

    Raises:
        InputErrors: mistakes in the manifest or in the review.
    """
    from lynx_parallel.inputs.load import load_campaign
    from lynx_parallel.inputs.review import apply_review
    from lynx_parallel.output.folder import Output

    campaign = load_campaign(manifest, set_ or ())
    done = apply_review(Output(campaign.output), campaign, Path(file))
    earlier = f", {done.earlier} about earlier seeds" if done.earlier else ""
    say(f"{shown_path(file)}: {done.accepted} accepted, {done.rerolled} rerolled{earlier}")
