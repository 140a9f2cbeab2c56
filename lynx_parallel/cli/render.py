"""lynx-render MANIFEST..."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from lynx_parallel.cli.approve import approve_plan
from lynx_parallel.cli.finish import Ended, end_metrics, print_json, run_command
from lynx_parallel.cli.forecast import announce
from lynx_parallel.cli.help import show_help
from lynx_parallel.cli.help_text import OUTPUT, SHOTS
from lynx_parallel.cli.load import Loaded, load_all
from lynx_parallel.cli.observe import metrics_path, observed
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
    Manifests,
    MaxFailures,
    MaxGpus,
    MetricsTo,
    OneExpert,
    Only,
    Quiet,
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
from lynx_parallel.cli.repeat import request_of
from lynx_parallel.cli.report import end_with_report
from lynx_parallel.cli.takes import review_takes
from lynx_parallel.cli.usage import refuse_commands
from lynx_parallel.errors import FAULT_CODE, ClusterError, InputErrors, LynxError
from lynx_parallel.inputs.shard_option import read_shard
from lynx_parallel.view.lines import Lines

if TYPE_CHECKING:
    from lynx_parallel.plan.plan import Plan


def render(
    context: typer.Context,
    manifest: Manifests, ulysses: Ulysses = None, ring: Ring = None, guidance: Guidance = None, gangs: Gangs = None,
    max_gpus: MaxGpus = None, shard_weights: ShardWeights = False, one_expert: OneExpert = False,
    attention: Attention = "auto",
    tiled_decode: TiledDecode = False, device: Device = "auto", address: Address = None, stop_after: StopAfter = None,
    max_failures: MaxFailures = 1_000_000, hung_after: HungAfter = "60s", save_every: SaveEvery = "30s",
    set_: Set = None, only: Only = None,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes", help="Make finished shots again whatever the reason; also LYNX_YES=1.", rich_help_panel=SHOTS
        ),
    ] = False,
    verify: Verify = False, strict: Strict = False, as_json: Json = False, quiet: Quiet = False,
    events: Events = None, metrics_file: MetricsTo = None,
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Do not write report.html at the end.", rich_help_panel=OUTPUT)
    ] = False,
    review: Annotated[
        str | None,
        typer.Option(
            "--review",
            metavar="FILE",
            help="Reroll what this review.csv of a report rejects.",
            rich_help_panel=SHOTS,
        ),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample", metavar="N", help="First render N shots that differ, and report.", rich_help_panel=SHOTS
        ),
    ] = None,
    sample_only: Annotated[
        int | None,
        typer.Option(
            "--sample-only", metavar="N", help="Render N shots that differ, then stop.", rich_help_panel=SHOTS
        ),
    ] = None,
    shard: ShardOption = None, deadline: Deadline = None, card: CardName = None,
    on_finish: Annotated[
        str | None,
        typer.Option(
            "--on-finish",
            metavar="COMMAND",
            help="Run this at the end, with LYNX_* variables.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    allow_blocked: Annotated[
        bool,
        typer.Option(
            "--allow-blocked", help="Exit 0 if nothing but blocked shots is left.", rich_help_panel=OUTPUT
        ),
    ] = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Render every shot of the manifests that is not done yet.

    Several manifests are one queue. Those with the same weights share ranks.

    Exits 0: all done, 1: some shots failed or are blocked, 2: bad input, 3: the machine or the cluster cannot be
    used, 75: stopped on purpose, 130 or 143: stopped by Ctrl-C or SIGTERM. Run it again to resume.

    Examples:
        lynx-render campaign.yaml                      render, or resume
        lynx-render campaign.yaml --sample 6           begin with shots that differ
        lynx-render campaign.yaml --only 'ada/*' --set sampling.seed=7
        lynx-render campaign.yaml --ulysses 4          four GPUs for each shot
        lynx-render spring.yaml summer.yaml            two campaigns, one queue
        lynx-render campaign.yaml --shard 2/8          the second of eight machines
        lynx-render campaign.yaml --stop-after 3h50m   stop before a job's end
    """
    from lynx_parallel.cli.forecast import remember_rates
    from lynx_parallel.engine.campaign_run import CampaignRun
    from lynx_parallel.engine.driver import Driver
    from lynx_parallel.engine.sample import Sample
    from lynx_parallel.view.metrics_file import MetricsFile

    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise ClusterError(f"{platform.system()} {platform.machine()}: lynx-render runs on Linux x86-64")
    say = Lines(sys.stderr if as_json or events == "-" else sys.stdout)
    cluster = cluster_spec(
        ulysses=ulysses, ring=ring, guidance=guidance, gangs=gangs, max_gpus=max_gpus, shard_weights=shard_weights,
        one_expert=one_expert,
        attention=attention, tiled_decode=tiled_decode, device=device, address=address, stop_after=stop_after,
        max_failures=max_failures, hung_after=hung_after, save_every=save_every,
    )  # fmt: skip
    refuse_commands(manifest, context)
    part = read_shard(shard)
    metrics_to = metrics_path(metrics_file)
    if sample is not None and sample_only is not None:
        raise InputErrors(["--sample: not together with --sample-only; choose one"])
    for option, count in (("--sample", sample), ("--sample-only", sample_only)):
        if count is not None and count < 1:
            raise InputErrors([f"{option} {count}: must be a whole number from 1"])
    sample = sample or sample_only
    if review is not None:
        if len(manifest) > 1:
            raise InputErrors(["--review: is about one campaign; name one manifest"])
        review_takes(manifest[0], set_, review, say)
    each = load_all(manifest, set_, only, verify, say)
    for loaded in each:
        for line in loaded.lora_lines:
            say(line)
    show_notices([notice for loaded in each for notice in loaded.campaign.notices], strict)
    request = request_of(context, ["lynx-render", *sys.argv[1:]])

    def check(loaded: Loaded, plan: Plan) -> None:
        approve_plan(loaded, plan, request, yes, say)
        announce(loaded, plan, cluster, card, deadline, say)

    def write_reports(say: Callable[[str], None]) -> None:
        for name, loaded in zip(manifest, each, strict=True):
            end_with_report(name, loaded.campaign, set_, only, say)

    campaigns = [
        CampaignRun(loaded.campaign, loaded.parts, loaded.replan, request, partial(check, loaded), part)
        for loaded in each
    ]
    chosen = None
    every = [loaded.campaign for loaded in each]
    metrics = None if metrics_to is None else MetricsFile(metrics_to, ", ".join(str(one.output) for one in every))
    try:
        with observed(say, quiet=quiet, events=events, metrics=metrics) as observer:
            if sample is not None:
                chosen = Sample(sample, sample_only is not None, lambda: write_reports(observer.say))
            Driver(campaigns, cluster, observer, chosen).run()
    except LynxError as error:
        if metrics is not None:
            end_metrics(metrics, every, error.exit_code)
        if on_finish is not None:
            for campaign in every:
                run_command(on_finish, campaign, None, error.exit_code, str(error), output=say.stream)
        raise
    ended = [Ended(one.campaign, one.summary, one.title, allow_blocked=allow_blocked) for one in campaigns]
    for loaded, one in zip(each, ended, strict=True):
        one.say(say, with_failures=quiet)
        remember_rates(loaded, one.summary)
    if not no_report and ended[0].summary.stopped_by is None:
        write_reports(say)
    if ended[0].summary.fault:
        print(ended[0].summary.fault, file=sys.stderr)
    codes = [code for one in ended for code in one.summary.codes.values()]
    show_help([*([FAULT_CODE] if ended[0].summary.fault else []), *codes])
    exit_code = max(one.exit_code for one in ended)
    if metrics is not None:
        end_metrics(metrics, every, exit_code)
    if on_finish is not None:
        for one in ended:
            run_command(on_finish, one.campaign, one.summary, one.exit_code, output=say.stream)
    if as_json:
        print_json(ended, exit_code)
    raise typer.Exit(exit_code)
