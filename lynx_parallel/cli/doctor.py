"""lynx-render doctor [PIPELINE]."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lynx_parallel.cli.options import Debug, Json
from lynx_parallel.errors import ClusterError


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
    from lynx_parallel.inputs.cluster import ClusterSpec

    ClusterSpec(device=device)  # type: ignore[arg-type]
    report = examine(pipeline, device)
    typer.echo(json.dumps(report.as_json()) if as_json else text(report))
    raise typer.Exit(ClusterError.exit_code if report.failures else 0)
