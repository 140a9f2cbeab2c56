"""lynx-render: parse, call, print. Importing this imports neither torch nor Ray."""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import sys
import traceback
from collections.abc import Callable
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeGuard

import typer

import lynx_parallel
from lynx_parallel.artifacts import shown
from lynx_parallel.errors import ClusterError, LynxError

if TYPE_CHECKING:
    from lynx_parallel.plan import Plan
    from lynx_parallel.spec.manifest import Campaign
    from lynx_parallel.weights import FaceFiles, WeightFiles

app = typer.Typer(
    name="lynx-render",
    help="Renders a campaign of personalised videos: lynx-render MANIFEST is short for lynx-render render MANIFEST.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Manifest = Annotated[str, typer.Argument(help="Manifest file, or the bare name of a shipped one (demo).")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: sampling.seed=7.")
]
Only = Annotated[list[str] | None, typer.Option("--only", metavar="PATTERN", help="Only these shots: 'ada/*'.")]
Verify = Annotated[bool, typer.Option("--verify", help="Read finished files whole instead of trusting size and mtime.")]
Json = Annotated[bool, typer.Option("--json", help="End with a JSON summary on stdout; progress goes to stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"lynx-render {lynx_parallel.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None: ...


@app.command()
def render(
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
    verify: Verify = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Render every shot of MANIFEST that is not done yet."""
    from lynx_parallel.driver import Driver
    from lynx_parallel.spec.cluster import ClusterSpec, read_duration

    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise ClusterError(f"{platform.system()} {platform.machine()}: lynx-render runs on Linux x86-64")
    say = _Say(sys.stderr if as_json else sys.stdout)
    cluster = ClusterSpec(
        ulysses=ulysses, ring=ring, guidance=guidance, device=device, address=address,  # type: ignore[arg-type]
        shard_weights=shard_weights, attention=attention, tiled_decode=tiled_decode,  # type: ignore[arg-type]
        gangs=gangs, max_gpus=max_gpus, max_failures=max_failures,
        stop_after=None if stop_after is None else read_duration(stop_after, "--stop-after"),
        hung_after=read_duration(hung_after, "--hung-after"), save_every=read_duration(save_every, "--save-every"),
    )  # fmt: skip
    campaign, weights, face, digests, replan = _load(manifest, set_, only, verify)
    summary = Driver(campaign, weights, face, digests, replan, cluster, say).run()
    for name, reason in summary.blocked:
        say(f"{name}: blocked: {reason}")
    retried = f", {summary.retries} tried again" if summary.retries else ""
    say(
        f"{len(summary.rendered)} rendered, {len(summary.encoded)} encoded, {len(summary.skipped)} already done, "
        f"{len(summary.failed)} failed, {len(summary.blocked)} blocked{retried} in {summary.seconds:.0f} s: "
        f"{shown(campaign.output)}"
    )
    if made := summary.conditioning:
        kinds = ("subject", "reference", "identity", "text")
        say("conditioning: " + ", ".join(f"{kind} {made[kind]} made, {made[kind + ' kept']} reused" for kind in kinds))
    if summary.fault:
        print(summary.fault, file=sys.stderr)
    if as_json:
        typer.echo(json.dumps({"output": str(campaign.output), **vars(summary), "exit_code": summary.exit_code}))
    raise typer.Exit(summary.exit_code)


@app.command()
def plan(
    manifest: Manifest, set_: Set = None, only: Only = None, verify: Verify = False, as_json: Json = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Show what render would do, shot by shot, and why; renders nothing."""
    campaign, _, _, _, make = _load(manifest, set_, only, verify)
    planned = make()
    if as_json:
        rows = [
            {"name": i.shot.name, "action": i.action, "reason": i.reason, "seed": i.shot.seed} for i in planned.items
        ]
        typer.echo(json.dumps({"output": str(campaign.output), "shots": rows, "orphans": list(planned.orphans)}))
        return
    typer.echo(f"{campaign.path.name}: {planned}")
    for item in planned.items:
        typer.echo(f"{item.action:8}{item.shot.name}{': ' * bool(item.reason)}{item.reason}")
    for name in planned.orphans:
        typer.echo(f"orphan  {name}")


@app.command()
def forget(
    subjects: Annotated[list[str], typer.Argument(metavar="SUBJECT", help="Ids of subjects, as in the manifest.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove the cached face data of subjects; list the videos that remain of them."""
    from lynx_parallel import subjects as cached

    forgotten = cached.forget(subjects)
    code = int(any(one.left for one in forgotten))
    if as_json:
        typer.echo(json.dumps({"subjects": list(map(vars, forgotten)), "exit_code": code}, default=str))
        raise typer.Exit(code)
    for one in forgotten:
        if not one.known:
            typer.echo(f"{one.subject}: nothing was cached for this subject")
            continue
        typer.echo(f"{one.subject}: cached face data removed{', except what a warning names' * bool(one.left)}")
        for path in one.videos:
            typer.echo(path)
        rest = "left for you to delete, with the .json and .latents.safetensors beside each"
        typer.echo(f"{one.subject}: videos that remain: {len(one.videos)}{f', {rest}' * bool(one.videos)}")
    raise typer.Exit(code)


@app.command()
def doctor(
    pipeline: Annotated[
        str | None, typer.Argument(help="Pipeline file or bare name; its weights are checked too.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check this machine and the weights of PIPELINE. Checks GPUs, kernels, packages and disks; downloads nothing."""
    from lynx_parallel.doctor.examine import examine
    from lynx_parallel.doctor.report import text
    from lynx_parallel.spec.cluster import ClusterSpec

    ClusterSpec(device=device)  # type: ignore[arg-type]
    report = examine(pipeline, device)
    typer.echo(json.dumps(report.as_json()) if as_json else text(report))
    raise typer.Exit(ClusterError.exit_code if report.failures else 0)


@app.command()
def fetch(
    pipeline: Annotated[str, typer.Argument(help="Pipeline file, or the bare name of a shipped one (lynx-full).")],
    convert: Annotated[
        bool, typer.Option("--convert", help="Also store a copy of an fp32 transformer in the pipeline's dtype.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Download the weights and face models of PIPELINE. Checks each file and shows where it is stored."""
    from lynx_parallel.fetch import fetch as fetch_all
    from lynx_parallel.spec.load import load_pipeline
    from lynx_parallel.transfer import shown_size

    stream = sys.stderr if as_json else sys.stdout
    say = _Say(stream)
    try:
        fetched = fetch_all(load_pipeline(pipeline), converting=convert, stream=stream, say=say)
    except KeyboardInterrupt:
        say("stopped; what has arrived stays, run again to resume")
        stream.flush()
        os._exit(130)  # does not wait for downloads that get no answer
    if as_json:
        typer.echo(json.dumps({"files": [vars(one) for one in fetched], "exit_code": 0}, default=str))
        return
    for one in fetched:
        typer.echo(f"{one.name:11}{shown_size(one.bytes):>9}  {one.source}, {one.license}: {one.path}")


def _load(
    manifest: str, set_: list[str] | None, only: list[str] | None, verify: bool
) -> tuple[Campaign, WeightFiles, FaceFiles | None, dict[str, str], Callable[[], Plan]]:
    """The campaign, its weights and face models, their digests, and what compares it with the output folder."""
    from lynx_parallel.converted import with_converted
    from lynx_parallel.identity import needs_face_models
    from lynx_parallel.plan import make_plan
    from lynx_parallel.spec.load import load_campaign
    from lynx_parallel.weights import find_face_models, find_weights, not_cached, weight_digests

    campaign = load_campaign(manifest, set_ or (), only or ())
    for name in not_cached(campaign.pipeline.model):
        _Say(sys.stderr)(f"{name}: downloading from the hub; lynx-render fetch shows progress and resumes")
    weights = find_weights(campaign.pipeline.model)
    face = find_face_models(campaign.pipeline.face) if needs_face_models(campaign) else None
    digests = weight_digests(weights, face)
    weights = with_converted(weights, digests, campaign.pipeline.model.dtype)
    replan = partial(make_plan, campaign, digests, today=date.today(), verify=verify, whole=not only)
    return campaign, weights, face, digests, replan


class _Say:
    """One line of progress at a time, flushed, so that a pipe or a log shows it at once.

    A reader that goes away (``| head``), a terminal that is closed, a log's full disk: the line is lost, nothing else.
    """

    def __init__(self, stream: Any):
        self.stream = stream

    def __call__(self, line: str) -> None:
        with contextlib.suppress(OSError):
            print(line, file=self.stream, flush=True)


def _names_file(error: Exception) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.filename is not None and error.strerror is not None


def main() -> None:
    """Entry point: ``lynx-render MANIFEST`` is ``lynx-render render MANIFEST``; errors become lines and exit codes."""
    arguments = sys.argv[1:]
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    if arguments and arguments[0] not in {*commands, "--help", "--version"}:
        arguments.insert(0, "render")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: no name may stop a run in a narrow locale
    try:
        app(arguments, prog_name="lynx-render")
    except (LynxError, OSError) as error:
        if "--debug" in arguments:
            traceback.print_exc()
        else:
            print(f"{error.filename}: {error.strerror}" if _names_file(error) else error, file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, LynxError) else ClusterError.exit_code)


if __name__ == "__main__":
    main()
