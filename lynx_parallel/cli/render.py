"""lynx-render MANIFEST."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from lynx_parallel.cli.approve import approve
from lynx_parallel.cli.load import load
from lynx_parallel.cli.observe import observed
from lynx_parallel.cli.options import (
    Address,
    Attention,
    Debug,
    Device,
    Events,
    Gangs,
    Guidance,
    HungAfter,
    Json,
    Manifest,
    MaxFailures,
    MaxGpus,
    OneExpert,
    Only,
    Quiet,
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
from lynx_parallel.cli.repeat import request_of
from lynx_parallel.cli.report import end_with_report
from lynx_parallel.errors import ClusterError
from lynx_parallel.inputs.notices import notices_as_json
from lynx_parallel.text import shown_path
from lynx_parallel.view.lines import Lines

if TYPE_CHECKING:
    from lynx_parallel.plan.plan import Item


def render(
    context: typer.Context,
    manifest: Manifest, ulysses: Ulysses = None, ring: Ring = None, guidance: Guidance = None, gangs: Gangs = None,
    max_gpus: MaxGpus = None, shard_weights: ShardWeights = False, one_expert: OneExpert = False,
    attention: Attention = "auto",
    tiled_decode: TiledDecode = False, device: Device = "auto", address: Address = None, stop_after: StopAfter = None,
    max_failures: MaxFailures = 1_000_000, hung_after: HungAfter = "60s", save_every: SaveEvery = "30s",
    set_: Set = None, only: Only = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Make finished shots again whatever the reason; also LYNX_YES=1.")
    ] = False,
    verify: Verify = False, strict: Strict = False, as_json: Json = False, quiet: Quiet = False,
    events: Events = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Do not write report.html at the end.")] = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Render every shot of MANIFEST that is not done yet."""
    from lynx_parallel.engine.driver import Driver
    from lynx_parallel.output.approvals import Approvals
    from lynx_parallel.output.folder import Output
    from lynx_parallel.plan.parts import changes_of_parts

    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise ClusterError(f"{platform.system()} {platform.machine()}: lynx-render runs on Linux x86-64")
    say = Lines(sys.stderr if as_json or events == "-" else sys.stdout)
    cluster = cluster_spec(
        ulysses=ulysses, ring=ring, guidance=guidance, gangs=gangs, max_gpus=max_gpus, shard_weights=shard_weights,
        one_expert=one_expert,
        attention=attention, tiled_decode=tiled_decode, device=device, address=address, stop_after=stop_after,
        max_failures=max_failures, hung_after=hung_after, save_every=save_every,
    )  # fmt: skip
    with say.if_slow(f"reading {manifest} and the weights"):
        loaded = load(manifest, set_, only, verify)
    campaign = loaded.campaign
    for line in loaded.lora_lines:
        say(line)
    show_notices(campaign.notices, strict)
    request = request_of(context, ["lynx-render", *sys.argv[1:]])

    def check(todo: Sequence[Item]) -> None:
        approvals = Approvals(Output(campaign.output).approvals)
        approve(changes_of_parts(loaded.parts, todo, request.set), approvals, yes, say)

    with observed(say, quiet=quiet, events=events) as observer:
        summary = Driver(campaign, loaded.parts, loaded.replan, cluster, observer, request, check).run()
    for name, reason in summary.failed if quiet else ():
        say(f"{name}: failed: {reason}")
    for name, reason in summary.blocked:
        say(f"{name}: blocked: {reason}")
    retried = f", {summary.retries} tried again" if summary.retries else ""
    left = f", {summary.left} left" if summary.left else ""
    again = "; run again to resume" if summary.left else ""
    say(
        f"{len(summary.rendered)} rendered, {len(summary.encoded)} encoded, {len(summary.skipped)} already done, "
        f"{len(summary.failed)} failed, {len(summary.blocked)} blocked{retried}{left} in {summary.seconds:.0f} s: "
        f"{shown_path(campaign.output)}{again}"
    )
    if made := summary.conditioning:
        kinds = ("subject", "reference", "identity", "text")
        say("conditioning: " + ", ".join(f"{kind} {made[kind]} made, {made[kind + ' kept']} reused" for kind in kinds))
    if not no_report and summary.stopped_by is None:
        end_with_report(manifest, campaign, set_, only, say)
    if summary.fault:
        print(summary.fault, file=sys.stderr)
    if as_json:
        ended = {**vars(summary), "exit_code": summary.exit_code, "warnings": notices_as_json(campaign.notices)}
        typer.echo(json.dumps({"output": str(campaign.output), **ended}))
    raise typer.Exit(summary.exit_code)
