"""lynx-render plan MANIFEST."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lynx_parallel.cli.load import fetch_hint, load
from lynx_parallel.cli.options import (
    Address,
    Attention,
    Debug,
    Device,
    Gangs,
    Guidance,
    HungAfter,
    Json,
    Manifest,
    MaxFailures,
    MaxGpus,
    OneExpert,
    Only,
    Ring,
    SaveEvery,
    Set,
    ShardWeights,
    StopAfter,
    Strict,
    TiledDecode,
    Ulysses,
    Verify,
    cluster_spec,
    show_notices,
)
from lynx_parallel.inputs.notices import notices_as_json
from lynx_parallel.text import escaped

WORK_TO_DO = 4
"""Exit code with ``--detailed-exitcode`` if there is work to do, or may be."""


def plan(
    manifest: Manifest, ulysses: Ulysses = None, ring: Ring = None, guidance: Guidance = None, gangs: Gangs = None,
    max_gpus: MaxGpus = None, shard_weights: ShardWeights = False, one_expert: OneExpert = False,
    attention: Attention = "auto",
    tiled_decode: TiledDecode = False, device: Device = "auto", address: Address = None, stop_after: StopAfter = None,
    max_failures: MaxFailures = 1_000_000, hung_after: HungAfter = "60s", save_every: SaveEvery = "30s",
    set_: Set = None, only: Only = None, verify: Verify = False, strict: Strict = False,
    shots: Annotated[bool, typer.Option("--shots", help="Show the text of each shot.")] = False, as_json: Json = False,
    detailed_exitcode: Annotated[
        bool, typer.Option("--detailed-exitcode", help="Exit 0: nothing to do, 2: bad input, 4: work to do.")
    ] = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Show what render would do, shot by shot, and why; renders and downloads nothing. Takes render's options."""
    from lynx_parallel.plan.parts import Part, changes_of_parts, check_parts

    cluster = cluster_spec(
        ulysses=ulysses, ring=ring, guidance=guidance, gangs=gangs, max_gpus=max_gpus, shard_weights=shard_weights,
        one_expert=one_expert,
        attention=attention, tiled_decode=tiled_decode, device=device, address=address, stop_after=stop_after,
        max_failures=max_failures, hung_after=hung_after, save_every=save_every,
    )  # fmt: skip
    loaded = load(manifest, set_, only, verify, download=False)
    campaign = loaded.campaign
    planned = loaded.replan()
    todo = planned.of("render", "encode", "unknown")
    check_parts(loaded.parts, todo, cluster)
    show_notices(campaign.notices, strict)
    changes = changes_of_parts(loaded.parts, planned.items, set_ or ())
    missing: dict[str, Part] = {}
    for weight, part in loaded.missing:
        missing.setdefault(str(weight), part)  # several pipelines may need it
    exit_code = WORK_TO_DO if detailed_exitcode and todo else 0
    if as_json:
        rows = [
            {"name": i.shot.name, "action": i.action, "reason": i.reason, "seed": i.shot.seed}
            | ({"text": i.shot.text, "negative_prompt": i.shot.sampling.negative_prompt} if shots else {})
            for i in planned.items
        ]
        found = {
            "shots": rows, "orphans": list(planned.orphans), "warnings": notices_as_json(campaign.notices),
            "missing": list(missing),
            "changes": [change.as_json() for change in changes],
        }  # fmt: skip
        typer.echo(json.dumps({"output": str(campaign.output), **found}))
        raise typer.Exit(exit_code)
    typer.echo(f"{campaign.path.name}: {planned}")
    for line in loaded.lora_lines:
        typer.echo(line)
    for item in planned.items:
        typer.echo(f"{item.action:8}{item.shot.name}{': ' * bool(item.reason)}{item.reason}")
        if shots:
            typer.echo(f"        {escaped(item.shot.text)}")
    for name in planned.orphans:
        typer.echo(f"orphan  {name}")
    for change in changes:
        if change.causes:
            typer.echo(f"{change}; render asks first")
    for name, part in missing.items():
        typer.echo(f"missing {name}: {fetch_hint(part.campaign)}")
    raise typer.Exit(exit_code)
