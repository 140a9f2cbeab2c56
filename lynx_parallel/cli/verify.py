"""lynx-render verify MANIFEST_OR_OUTPUT_FOLDER."""

from __future__ import annotations

import json
import os
from datetime import date
from pathlib import Path
from typing import Annotated, get_args

import typer

from lynx_parallel.cli.options import Debug, Json, Set
from lynx_parallel.errors import InputErrors
from lynx_parallel.text import shown_path

Target = Annotated[
    str,
    typer.Argument(
        metavar="MANIFEST_OR_OUTPUT_FOLDER",
        help="Manifest file, or an output folder. Only with a manifest, shots that were never made are listed.",
    ),
]


def verify(target: Target, set_: Set = None, as_json: Json = False, debug: Debug = False) -> None:
    """Read an output folder whole; list what is damaged or missing.

    It also lists foreign files. It renders and changes nothing. Exits with 1 if something is damaged or missing.

    Examples:
        lynx-render verify campaign.yaml
        lynx-render verify renders/spring --json
    """
    from lynx_parallel.inputs.load import load_campaign
    from lynx_parallel.inputs.near_files import near_file
    from lynx_parallel.inputs.records import find_record
    from lynx_parallel.output.folder import Output
    from lynx_parallel.output.found_drivers import find_drivers
    from lynx_parallel.output.shot_states import shot_states
    from lynx_parallel.output.verify import Kind, by_kind
    from lynx_parallel.output.verify import verify as verify_output
    from lynx_parallel.text import shown_size

    folder, shots, expected = Path(os.path.realpath(target)), None, set[str]()
    if folder.is_dir() and not find_record(target):
        if set_:
            raise InputErrors(["--set: needs a manifest, not an output folder"])
        if not Output(folder).is_one():
            raise InputErrors([f"{target}: not an output folder: it holds neither .lynx nor a sidecar"])
    elif "/" in target and not os.path.lexists(target):
        raise InputErrors([f"{target}: no such manifest or output folder{near_file(target)}"])
    else:
        campaign = load_campaign(target, set_ or ())
        folder, shots = campaign.output, {shot.name for shot in campaign.shots}
        expected = {shot.name for shot in campaign.shots if not _expired(shot.subject.consent)}
        expected -= {one.name for one in shot_states(Output(folder), expected, read=False) if one.state in _NOT_MADE}
    output = Output(folder)
    if not as_json:
        typer.echo(f"reading {shown_path(folder)}")
        if any(driver.who for driver in find_drivers(output)):
            typer.echo("a run seems to be at work here: what it writes meanwhile may be listed as damaged")
    report = verify_output(output, shots, expected)
    findings = list(by_kind(report.findings))
    if as_json:
        found = {"files": report.files, "bytes": report.bytes, "findings": list(map(vars, findings))}
        typer.echo(json.dumps({"output": str(folder), **found, "exit_code": report.exit_code}))
        raise typer.Exit(report.exit_code)
    for finding in findings:
        typer.echo(f"{finding.kind:12}{finding.path}: {finding.reason}")
    counts = ", ".join(f"{report.count(kind)} {kind}" for kind in get_args(Kind))
    typer.echo(f"{report.files} files read, {shown_size(report.bytes).strip()}: {counts}")
    raise typer.Exit(report.exit_code)


_NOT_MADE = ("not chosen", "auditioned", "withheld")
"""States of shots that have no video, and need none."""


def _expired(consent: object) -> bool:
    """Returns whether a shot may not be made, as ``plan`` decides it."""
    expires = getattr(consent, "expires", None)
    return expires is not None and expires < date.today()
