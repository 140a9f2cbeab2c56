"""lynx-render prune: removes what an output folder no longer needs."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lynx_parallel.cli.help_text import OUTPUT, SHOTS
from lynx_parallel.cli.options import Debug
from lynx_parallel.cli.target import Target, TargetArgument, find_target
from lynx_parallel.errors import InputErrors
from lynx_parallel.text import counted, escaped, shown_path, shown_size

if TYPE_CHECKING:
    from collections.abc import Collection

    from lynx_parallel.output.prune import Prunable

_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12}


def prune(
    target: TargetArgument = None,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="30d", help="Only what is older: 30d, 12h.", rich_help_panel=SHOTS),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option("--keep", metavar="50GB", help="Keep the newest, up to this size.", rich_help_panel=SHOTS),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is listed.", rich_help_panel=OUTPUT)] = False,
    files: Annotated[bool, typer.Option("--files", help="List each file.", rich_help_panel=OUTPUT)] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead.", rich_help_panel=OUTPUT)
    ] = False,
    debug: Debug = False,
) -> None:
    """List what an output folder no longer needs. With --yes, remove it.

    Superseded and damaged files, resume states that no run would use, and logs of finished shots. Videos, latents,
    sidecars, takes and the journal stay.

    Examples:
        lynx-render prune renders/spring
        lynx-render prune campaign.yaml --older-than 30d --yes
        lynx-render prune renders/spring --keep 50GB --files
    """
    from lynx_parallel.output.prune import KINDS, choose, find_prunable, remove
    from lynx_parallel.output.shard import FolderLock
    from lynx_parallel.output.shot_states import shot_states

    before, size = _limits(older_than, keep)
    found = find_target(target)
    states, why = _abandoned(found)
    finished = [shot.name for shot in shot_states(found.output, read=False) if shot.state == "done"]
    chosen = choose(find_prunable(found.output, states, finished), before=before, keep=size)
    left: dict[Path, str] = {}
    if yes:
        with FolderLock(found.output.private):
            left = remove(found.output, chosen)
    code = int(bool(left))
    if as_json:
        rows = [{**asdict(one), "path": str(one.path), "left": left.get(one.path, "")} for one in chosen]
        typer.echo(json.dumps({"output": str(found.output.folder), "files": rows, "removed": yes, "exit_code": code}))
        raise typer.Exit(code)
    if why:
        typer.echo(why)
    for kind, words in KINDS.items():
        if of_kind := [one for one in chosen if one.kind == kind]:
            typer.echo(f"{words}: {_counted(of_kind)}")
            for one in of_kind if files else ():
                typer.echo(f"  {escaped(shown_path(one.path))}")
    for path, reason in left.items():
        typer.echo(f"{escaped(shown_path(path))}: cannot be removed: {reason}", err=True)
    removed = [one for one in chosen if one.path not in left]
    if not chosen:
        typer.echo(f"{found.shown}: nothing to remove")
    elif yes:
        typer.echo(f"removed {_counted(removed)}")
    else:
        typer.echo(f"Nothing was removed. Add --yes to remove {_counted(chosen)}")
    raise typer.Exit(code)


def _counted(found: Collection[Prunable]) -> str:
    return f"{counted(len(found), 'path')}, {shown_size(sum(one.size for one in found)).strip()}"


def _limits(older_than: str | None, keep: str | None) -> tuple[float | None, int | None]:
    """Returns the time before which something is old, and the bytes to keep.

    Raises:
        InputErrors: not a duration, or not a size.
    """
    lines: list[str] = []
    before = size = None
    if older_than is not None:
        if found := re.fullmatch(r"([0-9]{1,5})([dhm])", older_than, re.ASCII):
            before = time.time() - int(found[1]) * {"d": 86400, "h": 3600, "m": 60}[found[2]]
        else:
            lines.append(f"--older-than {escaped(older_than)}: must be days, hours or minutes: 30d, 12h, 90m")
    if keep is not None:
        if found := re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(MB|GB|TB)", keep, re.ASCII):
            size = int(float(found[1]) * _UNITS[found[2]])
        else:
            lines.append(f"--keep {escaped(keep)}: must be a size such as 500MB, 50GB or 1.5TB")
    if lines:
        raise InputErrors(lines)
    return before, size


def _abandoned(found: Target) -> tuple[set[Path], str]:
    """Returns the resume states that no run would use; and why they are unknown, if they are."""
    from lynx_parallel.cli.load import load_parts

    states = found.output.resume_states()
    if not states:
        return set(), ""
    try:
        campaign = found.campaign
        if campaign is None:
            return set(), "resume states are kept: the last run cannot be read any more; name the manifest"
        items = load_parts(campaign, download=False).replan().items
    except InputErrors as error:
        if found.manifest is not None:
            raise
        return set(), f"resume states are kept: {error.lines[0]}"
    if any(item.action == "unknown" for item in items):
        return set(), "resume states are kept: without the weights it is unknown which are used"
    used = {found.output.resume_state(item.digests.resume) for item in items if item.action != "done"}
    return states - used, ""
