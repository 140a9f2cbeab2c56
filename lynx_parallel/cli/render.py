"""lynx-render MANIFEST."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from lynx_parallel.cli.approve import approve
from lynx_parallel.cli.finish import exit_code_of, print_json, run_command, say_summary
from lynx_parallel.cli.help import show_help
from lynx_parallel.cli.load import load
from lynx_parallel.cli.observe import observed
from lynx_parallel.cli.options import (
    Address,
    Attention,
    CardName,
    Deadline,
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
from lynx_parallel.cli.takes import review_takes
from lynx_parallel.errors import FAULT_CODE, ClusterError, InputErrors, LynxError
from lynx_parallel.view.lines import Lines

if TYPE_CHECKING:
    from lynx_parallel.plan.plan import Plan


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
    review: Annotated[
        str | None, typer.Option("--review", metavar="FILE", help="Reroll what this review.csv of a report rejects.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option("--sample", metavar="N", min=1, help="First render N shots that differ, and report.")
    ] = None,
    sample_only: Annotated[
        int | None, typer.Option("--sample-only", metavar="N", min=1, help="Render N shots that differ, then stop.")
    ] = None,
    deadline: Deadline = None, card: CardName = None,
    on_finish: Annotated[
        str | None, typer.Option("--on-finish", metavar="COMMAND", help="Run this at the end, with LYNX_* variables.")
    ] = None,
    allow_blocked: Annotated[
        bool, typer.Option("--allow-blocked", help="Exit 0 if nothing but blocked shots is left.")
    ] = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Render every shot of MANIFEST that is not done yet."""
    from lynx_parallel.cli.forecast import announce, remember_rates
    from lynx_parallel.engine.driver import Driver
    from lynx_parallel.engine.sample import Sample
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
    if sample is not None and sample_only is not None:
        raise InputErrors(["--sample: not together with --sample-only; choose one"])
    sample = sample or sample_only
    if review is not None:
        review_takes(manifest, set_, review, say)
    with say.if_slow(f"reading {manifest} and the weights"):
        loaded = load(manifest, set_, only, verify)
    campaign = loaded.campaign
    for line in loaded.lora_lines:
        say(line)
    show_notices(campaign.notices, strict)
    request = request_of(context, ["lynx-render", *sys.argv[1:]])

    def check(plan: Plan) -> None:
        todo = plan.of("render", "encode")
        approvals = Approvals(Output(campaign.output).approvals)
        approve(changes_of_parts(loaded.parts, todo, request.set), approvals, yes, say)
        announce(loaded, plan, cluster, card, deadline, say)

    def write_report(say: Callable[[str], None]) -> None:
        end_with_report(manifest, campaign, set_, only, say)

    chosen = None
    try:
        with observed(say, quiet=quiet, events=events) as observer:
            if sample is not None:
                chosen = Sample(sample, sample_only is not None, lambda: write_report(observer.say))
            summary = Driver(campaign, loaded.parts, loaded.replan, cluster, observer, request, check, chosen).run()
    except LynxError as error:
        if on_finish is not None:
            run_command(on_finish, campaign, None, error.exit_code, str(error), output=say.stream)
        raise
    for name, reason in summary.failed if quiet else ():
        say(f"{name}: failed: {reason}")
    say_summary(summary, campaign, say)
    remember_rates(loaded, summary)
    if not no_report and summary.stopped_by is None:
        write_report(say)
    if summary.fault:
        print(summary.fault, file=sys.stderr)
    show_help([*([FAULT_CODE] if summary.fault else []), *summary.codes.values()])
    exit_code = exit_code_of(summary, allow_blocked=allow_blocked)
    if on_finish is not None:
        run_command(on_finish, campaign, summary, exit_code, output=say.stream)
    if as_json:
        print_json(summary, campaign, exit_code)
    raise typer.Exit(exit_code)
