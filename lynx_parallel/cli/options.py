"""Options that several commands share, and how commands print."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lynx_parallel.cli.complete import attention_names, card_names, device_names, manifest_names
from lynx_parallel.cli.help_text import ESTIMATE, LAYOUT, MACHINE, MEMORY, OUTPUT, SHOTS, STOPPING
from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.notices import Notice, notice_lines
from lynx_parallel.view.lines import Lines

if TYPE_CHECKING:
    from lynx_parallel.inputs.cluster import ClusterSpec

Manifest = Annotated[
    str,
    typer.Argument(
        metavar="MANIFEST",
        help="Manifest file, or the bare name of a shipped one (demo).",
        autocompletion=manifest_names,
    ),
]
Manifests = Annotated[
    list[str],
    typer.Argument(
        metavar="MANIFEST",
        help="Manifest files, or bare names of shipped ones (demo).",
        autocompletion=manifest_names,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: sampling.seed=7.", rich_help_panel=SHOTS),
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="PATTERN", help="Only these shots: 'ada/*'.", rich_help_panel=SHOTS),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify", help="Read finished files whole instead of trusting size and mtime.", rich_help_panel=SHOTS
    ),
]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Treat warnings about the input as errors: exit 2.", rich_help_panel=SHOTS),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="End with a JSON summary on stdout; progress goes to stderr.", rich_help_panel=OUTPUT),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only what failed, and the summary.", rich_help_panel=OUTPUT)
]
Events = Annotated[
    str | None,
    typer.Option(
        "--events", metavar="FILE|-", help="Also write events, one JSON object per line.", rich_help_panel=OUTPUT
    ),
]
MetricsTo = Annotated[
    str | None,
    typer.Option(
        "--metrics-file",
        metavar="FILE.prom",
        help="Also write metrics for node exporter's textfile collector.",
        rich_help_panel=OUTPUT,
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug messages.", rich_help_panel=OUTPUT)]

# Where and how long to render: of render and of plan, so that either takes the other's command line.
Ulysses = Annotated[
    int | None, typer.Option(metavar="N", help="Ranks per shot, all-to-all over heads.", rich_help_panel=LAYOUT)
]
Ring = Annotated[
    int | None, typer.Option(metavar="N", help="Ranks per shot, ring over tokens.", rich_help_panel=LAYOUT)
]
Guidance = Annotated[
    int | None,
    typer.Option(metavar="N", help="Guidance branches computed at the same time: 1 to 3.", rich_help_panel=LAYOUT),
]
Gangs = Annotated[
    int | None, typer.Option(metavar="N", help="Number of shots rendered at the same time.", rich_help_panel=LAYOUT)
]
MaxGpus = Annotated[int | None, typer.Option(metavar="N", help="Maximum number of GPUs.", rich_help_panel=LAYOUT)]
OneExpert = Annotated[
    bool,
    typer.Option(
        "--one-expert",
        help="Of the two transformers of Wan2.2 A14B, hold one at a time.",
        rich_help_panel=MEMORY,
    ),
]
ShardWeights = Annotated[
    bool,
    typer.Option("--shard-weights", help="Split the weights over a shot's ranks.", rich_help_panel=MEMORY),
]
Attention = Annotated[
    str,
    typer.Option(
        metavar="KERNEL",
        help="auto (the fastest that works here), flash3, flash, cudnn or sdpa.",
        rich_help_panel=MEMORY,
        autocompletion=attention_names,
    ),
]
TiledDecode = Annotated[
    bool,
    typer.Option("--tiled-decode", help="Less memory, slightly other pixels.", rich_help_panel=MEMORY),
]
Device = Annotated[
    str,
    typer.Option(metavar="DEVICE", help="auto, cuda or cpu.", rich_help_panel=MACHINE, autocompletion=device_names),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Ray cluster to join, or auto; default $RAY_ADDRESS, else local.",
        rich_help_panel=MACHINE,
    ),
]
StopAfter = Annotated[
    str | None,
    typer.Option(
        metavar="3h50m", help="Stop after this time, save the running shots, exit 75.", rich_help_panel=STOPPING
    ),
]
MaxFailures = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Number of failed shots that ends the run; default: no limit.",
        rich_help_panel=STOPPING,
        show_default=False,
    ),
]
HungAfter = Annotated[
    str,
    typer.Option(
        metavar="60s", help="Treat a rank as hung after this long without an answer.", rich_help_panel=STOPPING
    ),
]
SaveEvery = Annotated[
    str,
    typer.Option(metavar="30s", help="Least time between two resume states of a shot.", rich_help_panel=STOPPING),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="K/N",
        help="Only the Kth of N shards, for machines without a common Ray cluster.",
        rich_help_panel=SHOTS,
    ),
]
CardName = Annotated[
    str | None,
    typer.Option(
        "--card",
        metavar="H100",
        help="Plan for this card instead of this machine's.",
        rich_help_panel=ESTIMATE,
        autocompletion=card_names,
    ),
]
Deadline = Annotated[
    str | None,
    typer.Option(
        "--deadline", metavar="06:00", help="Warn if the run is estimated to end later.", rich_help_panel=ESTIMATE
    ),
]


def cluster_spec(*, stop_after: str | None, hung_after: str, save_every: str, **options: Any) -> ClusterSpec:
    """Returns the checked options that say where to render.

    Args:
        options: the other fields of ``ClusterSpec``.

    Raises:
        InputErrors: one line per wrong option.
    """
    from lynx_parallel.inputs.cluster import ClusterSpec, read_duration

    return ClusterSpec(
        stop_after=None if stop_after is None else read_duration(stop_after, "--stop-after"),
        hung_after=read_duration(hung_after, "--hung-after"),
        save_every=read_duration(save_every, "--save-every"),
        **options,
    )


def show_notices(notices: Iterable[Notice], strict: bool) -> None:
    """Prints warnings about the input to stderr, one line per kind.

    Raises:
        InputErrors: there is a warning, and ``--strict`` was given.
    """
    lines = notice_lines(notices)
    if strict and lines:
        raise InputErrors(lines)
    for line in lines:
        Lines(sys.stderr)(line)
