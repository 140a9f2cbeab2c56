"""lynx-render doctor [PIPELINE]."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Annotated

import typer

from lynx_parallel.cli.complete import pipeline_names
from lynx_parallel.cli.options import Debug, Device, Json, Quiet
from lynx_parallel.errors import ClusterError


def doctor(
    pipeline: Annotated[
        str | None,
        typer.Argument(
            metavar="PIPELINE",
            help="Pipeline file or bare name; its weights are checked too.",
            autocompletion=pipeline_names,
        ),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check this machine, and the weights of PIPELINE.

    Checks GPUs, attention kernels, packages and disks. Each line appears as soon as a check ends. Downloads nothing.
    Exits with 3 if a check fails.

    Examples:
        lynx-render doctor
        lynx-render doctor lynx-full
        lynx-render doctor --device cpu --json
    """
    from lynx_parallel.doctor.examine import examine
    from lynx_parallel.inputs.cluster import ClusterSpec

    ClusterSpec(device=device)  # type: ignore[arg-type]
    stream = sys.stderr if as_json else sys.stdout

    def show(lines: Iterable[str], *, failed: bool = False) -> None:
        for line in lines if failed or not quiet else ():
            if line or not quiet:
                typer.echo(line, file=stream)

    report = examine(pipeline, device, show)
    code = ClusterError.exit_code if report.failures else 0
    if as_json:
        typer.echo(json.dumps({**report.as_json(), "exit_code": code}))
    raise typer.Exit(code)
