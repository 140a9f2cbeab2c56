"""lynx-render plan MANIFEST."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lynx_parallel.cli.load import load
from lynx_parallel.cli.options import Debug, Json, Manifest, Only, Set, Strict, Verify, show_notices
from lynx_parallel.notices import notices_as_json
from lynx_parallel.spec.problems import one_line


def plan(
    manifest: Manifest, set_: Set = None, only: Only = None, verify: Verify = False, strict: Strict = False,
    shots: Annotated[bool, typer.Option("--shots", help="Show the text of each shot.")] = False,
    as_json: Json = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Show what render would do, shot by shot, and why; renders nothing."""
    from lynx_parallel.changes import find_changes

    campaign, _, _, digests, make = load(manifest, set_, only, verify)
    show_notices(campaign.notices, strict)
    planned = make()
    changes = find_changes(planned.items, campaign, digests, set_ or ())
    if as_json:
        rows = [
            {"name": i.shot.name, "action": i.action, "reason": i.reason, "seed": i.shot.seed}
            | ({"text": i.shot.text, "negative_prompt": i.shot.sampling.negative_prompt} if shots else {})
            for i in planned.items
        ]
        found = {"shots": rows, "orphans": list(planned.orphans), "warnings": notices_as_json(campaign.notices)}
        found["changes"] = [change.as_json() for change in changes]
        typer.echo(json.dumps({"output": str(campaign.output), **found}))
        return
    typer.echo(f"{campaign.path.name}: {planned}")
    for item in planned.items:
        typer.echo(f"{item.action:8}{item.shot.name}{': ' * bool(item.reason)}{item.reason}")
        if shots:
            typer.echo(f"        {one_line(item.shot.text)}")
    for name in planned.orphans:
        typer.echo(f"orphan  {name}")
    for change in changes:
        if change.causes:
            typer.echo(f"{change}; render asks first")
