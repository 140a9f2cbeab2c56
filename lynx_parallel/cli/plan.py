"""lynx-render plan MANIFEST."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated

import typer

from lynx_parallel.cli.help import OUTPUT
from lynx_parallel.cli.load import fetch_hint, load
from lynx_parallel.cli.options import (
    Address,
    Attention,
    CardName,
    Deadline,
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

WORK_TO_DO = 4
"""Exit code with ``--detailed-exitcode`` if there is work to do, or may be."""


def plan(
    manifest: Manifest, ulysses: Ulysses = None, ring: Ring = None, guidance: Guidance = None, gangs: Gangs = None,
    max_gpus: MaxGpus = None, shard_weights: ShardWeights = False, one_expert: OneExpert = False,
    attention: Attention = "auto",
    tiled_decode: TiledDecode = False, device: Device = "auto", address: Address = None, stop_after: StopAfter = None,
    max_failures: MaxFailures = 1_000_000, hung_after: HungAfter = "60s", save_every: SaveEvery = "30s",
    set_: Set = None, only: Only = None, verify: Verify = False, strict: Strict = False,
    card: CardName = None, deadline: Deadline = None,
    shots: Annotated[
        bool, typer.Option("--shots", help="Show each shot with its text.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: Json = False,
    detailed_exitcode: Annotated[
        bool,
        typer.Option(
            "--detailed-exitcode",
            help="Exit 0: nothing to do, 2: bad input, 4: work to do.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Show what render would do, why, and how long it takes.

    It renders and downloads nothing. It takes render's options.

    Examples:
        lynx-render plan campaign.yaml
        lynx-render plan campaign.yaml --shots --only 'ada/*'
        lynx-render plan campaign.yaml --card H100 --max-gpus 8 --deadline 06:00
    """
    from lynx_parallel.cli.forecast import due, forecast_of
    from lynx_parallel.cli.plan_text import by_shot, by_subject
    from lynx_parallel.inputs.licences import licences
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
    now = datetime.now().astimezone()
    forecast = forecast_of(loaded, planned, cluster, card)
    warning = due(forecast, deadline, now)
    of_weights = {name: text for part in loaded.parts for name, text in licences(part.campaign.pipeline).items()}
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
            "forecast": forecast.as_json(),
            "licences": of_weights,
        }  # fmt: skip
        typer.echo(json.dumps({"output": str(campaign.output), **found}))
        raise typer.Exit(exit_code)
    typer.echo(f"{campaign.path.name}: {planned}")
    for line in loaded.lora_lines:
        typer.echo(line)
    for line in (by_shot if shots else by_subject)(planned.items):
        typer.echo(line)
    for name in planned.orphans:
        typer.echo(f"orphan  {name}")
    for change in changes:
        typer.echo(f"{change}{'; render asks first' if change.causes else ''}")
    for name, part in missing.items():
        typer.echo(f"missing {name}: {fetch_hint(part.campaign)}")
    for line in forecast.lines(now):
        typer.echo(line)
    for text in dict.fromkeys(of_weights.values()):
        named = ", ".join(name for name, licence in of_weights.items() if licence == text)
        typer.echo(f"licence: {text}: {named}")
    if warning:
        typer.echo(f"warning: {warning}", err=True)
    raise typer.Exit(exit_code)
