"""lynx-render plan MANIFEST..."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from functools import partial
from typing import Annotated

import typer

from lynx_parallel.cli.forecast import due, forecast_of
from lynx_parallel.cli.help_text import OUTPUT
from lynx_parallel.cli.load import load_all
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
    Manifests,
    MaxFailures,
    MaxGpus,
    OneExpert,
    Only,
    Ring,
    SaveEvery,
    Set,
    ShardOption,
    ShardWeights,
    StopAfter,
    Strict,
    TiledDecode,
    Ulysses,
    Verify,
    cluster_spec,
    show_notices,
)
from lynx_parallel.cli.plan_text import Page
from lynx_parallel.errors import collect
from lynx_parallel.inputs.shard_option import read_shard
from lynx_parallel.view.lines import Lines

WORK_TO_DO = 4
"""Exit code with ``--detailed-exitcode`` if there is work to do, or may be."""


def plan(
    manifest: Manifests, ulysses: Ulysses = None, ring: Ring = None, guidance: Guidance = None, gangs: Gangs = None,
    max_gpus: MaxGpus = None, shard_weights: ShardWeights = False, one_expert: OneExpert = False,
    attention: Attention = "auto",
    tiled_decode: TiledDecode = False, device: Device = "auto", address: Address = None, stop_after: StopAfter = None,
    max_failures: MaxFailures = 1_000_000, hung_after: HungAfter = "60s", save_every: SaveEvery = "30s",
    set_: Set = None, only: Only = None, verify: Verify = False, strict: Strict = False,
    shard: ShardOption = None, card: CardName = None, deadline: Deadline = None,
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
    from lynx_parallel.plan.parts import check_parts
    from lynx_parallel.plan.plan import EXPECTED
    from lynx_parallel.plan.shards import part_of_plan

    cluster = cluster_spec(
        ulysses=ulysses, ring=ring, guidance=guidance, gangs=gangs, max_gpus=max_gpus, shard_weights=shard_weights,
        one_expert=one_expert,
        attention=attention, tiled_decode=tiled_decode, device=device, address=address, stop_after=stop_after,
        max_failures=max_failures, hung_after=hung_after, save_every=save_every,
    )  # fmt: skip
    part = read_shard(shard)
    each = load_all(manifest, set_, only, verify, Lines(sys.stderr), download=False)
    plans = [loaded.replan() for loaded in each]
    if part is not None:
        plans = [part_of_plan(planned, loaded.parts, part) for loaded, planned in zip(each, plans, strict=True)]
    left = [planned.of(*EXPECTED) for planned in plans]
    collect(partial(check_parts, loaded.parts, todo, cluster) for loaded, todo in zip(each, left, strict=True))
    show_notices([notice for loaded in each for notice in loaded.campaign.notices], strict)
    pages = [
        Page(loaded, planned, forecast_of(loaded, planned, cluster, card), tuple(set_ or ()), shots=shots)
        for loaded, planned in zip(each, plans, strict=True)
    ]
    now = datetime.now().astimezone()
    warnings = [warning for page in pages if (warning := due(page.forecast, deadline, now))]
    if as_json:
        found = [page.as_json() for page in pages]
        typer.echo(json.dumps(found[0] if len(found) == 1 else {"campaigns": found}))
    else:
        for page in pages:
            for line in page.lines(now):
                typer.echo(line)
        for warning in warnings:
            typer.echo(f"warning: {warning}", err=True)
    raise typer.Exit(WORK_TO_DO if detailed_exitcode and any(left) else 0)
