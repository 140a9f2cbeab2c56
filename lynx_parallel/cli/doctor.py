"""lynx-render doctor [PIPELINE]."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lynx_parallel.cli.complete import pipeline_names
from lynx_parallel.cli.options import Debug, Device, Json
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
    debug: Debug = False,
) -> None:
    """Check this machine, and the weights of PIPELINE.

    Checks GPUs, attention kernels, packages and disks. Downloads nothing. Exits with 3 if a check fails.

    Examples:
        lynx-render doctor
        lynx-render doctor lynx-full
        lynx-render doctor --device cpu --json
    """
    from lynx_parallel.doctor.examine import examine
    from lynx_parallel.doctor.report import text
    from lynx_parallel.inputs.cluster import ClusterSpec

    ClusterSpec(device=device)  # type: ignore[arg-type]
    report = examine(pipeline, device)
    typer.echo(json.dumps(report.as_json()) if as_json else text(report))
    raise typer.Exit(ClusterError.exit_code if report.failures else 0)
