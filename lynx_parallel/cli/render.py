"""lynx-render MANIFEST."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from lynx_parallel.artifacts import shown
from lynx_parallel.cli.approve import approve
from lynx_parallel.cli.load import load
from lynx_parallel.cli.options import Debug, Json, Manifest, Only, Say, Set, Strict, Verify, show_notices
from lynx_parallel.cli.repeat import request_of
from lynx_parallel.errors import ClusterError
from lynx_parallel.notices import notices_as_json

if TYPE_CHECKING:
    from lynx_parallel.plan import Item


def render(
    context: typer.Context,
    manifest: Manifest,
    ulysses: Annotated[int | None, typer.Option(metavar="N", help="Ranks per shot, all-to-all over heads.")] = None,
    ring: Annotated[int | None, typer.Option(metavar="N", help="Ranks per shot, ring over tokens.")] = None,
    guidance: Annotated[int | None, typer.Option(metavar="N", help="Guidance branches side by side: 1 to 3.")] = None,
    gangs: Annotated[int | None, typer.Option(metavar="N", help="Shots rendered side by side.")] = None,
    max_gpus: Annotated[int | None, typer.Option(metavar="N", help="Use at most so many GPUs.")] = None,
    shard_weights: Annotated[
        bool, typer.Option("--shard-weights", help="Split the weights over a shot's ranks.")
    ] = False,
    attention: Annotated[
        str, typer.Option(help="auto (the fastest that works here), flash3, flash, cudnn or sdpa.")
    ] = "auto",
    tiled_decode: Annotated[bool, typer.Option("--tiled-decode", help="Less memory, slightly other pixels.")] = False,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; default $RAY_ADDRESS, else local.")] = None,
    stop_after: Annotated[str | None, typer.Option(metavar="3h50m", help="Then put the shot aside; exit 75.")] = None,
    max_failures: Annotated[int, typer.Option(metavar="N", help="End the run after so many failed shots.")] = 1_000_000,
    hung_after: Annotated[str, typer.Option(metavar="60s", help="Give up a rank silent for so long.")] = "60s",
    save_every: Annotated[str, typer.Option(metavar="30s", help="Save a shot's state so often, at most.")] = "30s",
    set_: Set = None,
    only: Only = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Make finished shots again whatever the reason; also LYNX_YES=1.")
    ] = False,
    verify: Verify = False,
    strict: Strict = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Render every shot of MANIFEST that is not done yet."""
    from lynx_parallel.approvals import Approvals
    from lynx_parallel.changes import find_changes
    from lynx_parallel.driver import Driver
    from lynx_parallel.ledger import Output
    from lynx_parallel.spec.cluster import ClusterSpec, read_duration

    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise ClusterError(f"{platform.system()} {platform.machine()}: lynx-render runs on Linux x86-64")
    say = Say(sys.stderr if as_json else sys.stdout)
    cluster = ClusterSpec(
        ulysses=ulysses, ring=ring, guidance=guidance, device=device, address=address,  # type: ignore[arg-type]
        shard_weights=shard_weights, attention=attention, tiled_decode=tiled_decode,  # type: ignore[arg-type]
        gangs=gangs, max_gpus=max_gpus, max_failures=max_failures,
        stop_after=None if stop_after is None else read_duration(stop_after, "--stop-after"),
        hung_after=read_duration(hung_after, "--hung-after"), save_every=read_duration(save_every, "--save-every"),
    )  # fmt: skip
    campaign, weights, face, digests, replan = load(manifest, set_, only, verify)
    show_notices(campaign.notices, strict)
    request = request_of(context, ["lynx-render", *sys.argv[1:]])

    def check(todo: Sequence[Item]) -> None:
        approvals = Approvals(Output(campaign.output).approvals)
        approve(find_changes(todo, campaign, digests, request.set), approvals, yes, say)

    summary = Driver(campaign, weights, face, digests, replan, cluster, say, request, check).run()
    for name, reason in summary.blocked:
        say(f"{name}: blocked: {reason}")
    retried = f", {summary.retries} tried again" if summary.retries else ""
    left = f", {summary.left} left" if summary.left else ""
    again = "; run again to resume" if summary.left else ""
    say(
        f"{len(summary.rendered)} rendered, {len(summary.encoded)} encoded, {len(summary.skipped)} already done, "
        f"{len(summary.failed)} failed, {len(summary.blocked)} blocked{retried}{left} in {summary.seconds:.0f} s: "
        f"{shown(campaign.output)}{again}"
    )
    if made := summary.conditioning:
        kinds = ("subject", "reference", "identity", "text")
        say("conditioning: " + ", ".join(f"{kind} {made[kind]} made, {made[kind + ' kept']} reused" for kind in kinds))
    if summary.fault:
        print(summary.fault, file=sys.stderr)
    if as_json:
        ended = {**vars(summary), "exit_code": summary.exit_code, "warnings": notices_as_json(campaign.notices)}
        typer.echo(json.dumps({"output": str(campaign.output), **ended}))
    raise typer.Exit(summary.exit_code)
