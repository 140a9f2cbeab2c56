"""lynx-render forget SUBJECT."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lynx_parallel.cli.help_text import OUTPUT, SHOTS
from lynx_parallel.cli.options import Debug, Json
from lynx_parallel.errors import ClusterError, InputErrors
from lynx_parallel.inputs.cache_root import cache_root
from lynx_parallel.text import shown_path
from lynx_parallel.view.lines import Lines

if TYPE_CHECKING:
    from lynx_parallel.subject.forget import Found, Search

MAX_HOSTS = 3
"""Machines that one line names. Further machines are counted."""


def forget(
    subjects: Annotated[list[str], typer.Argument(metavar="SUBJECT", help="Ids of subjects, as in the manifest.")],
    from_: Annotated[
        list[str] | None, typer.Option("--from", metavar="CAMPAIGN", help="Only in this manifest or output folder.")
    ] = None,
    everywhere: Annotated[
        bool, typer.Option("--everywhere", help="In all output folders that this machine's cache knows.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is listed.")] = False,
    delete_videos: Annotated[
        bool,
        typer.Option(
            "--delete-videos",
            help="Also videos, latents, sidecars, posters, takes and logs; writes a receipt.",
            rich_help_panel=SHOTS,
        ),
    ] = False,
    receipt: Annotated[
        str | None,
        typer.Option(
            "--receipt",
            metavar="FILE",
            help="Receipt of --delete-videos; default forgotten-SUBJECT-DATE.json.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the stored data of a person. With --yes, remove it.

    That is cached face data, crops, resume states, superseded files, candidates and scores. Finished videos are
    listed, and removed only with --delete-videos, which also removes the lines of the subject in journals, logs and
    records of runs.

    Examples:
        lynx-render forget ada
        lynx-render forget ada drawn --from campaign.yaml --yes
        lynx-render forget ada --everywhere --yes
        lynx-render forget ada --delete-videos --yes --receipt ada.json
    """
    from lynx_parallel.subject import forget as kept
    from lynx_parallel.subject.receipt import check_receipt, describe, write_receipt

    if from_ and everywhere:
        raise InputErrors(["--everywhere: not together with --from; choose one"])
    used = kept.cached_outputs(subjects)
    chosen = {_output(text, used) for text in from_ or ()}
    wanted = {name: chosen or used.get(name, set()) for name in subjects}
    several = [] if from_ or everywhere else [name for name in wanted if len(wanted[name]) > 1]
    if yes and several:
        raise InputErrors(_choose(name, wanted[name]) for name in several)
    if receipt is not None and not delete_videos:
        raise InputErrors(["--receipt: needs --delete-videos"])
    search = kept.find(wanted, with_videos=delete_videos)
    path = Path(os.path.abspath(receipt or f"forgotten-{'-'.join(wanted)}-{date.today().isoformat()}.json"))
    if yes and delete_videos:
        check_receipt(path)
        before = describe(search)
        write_receipt(path, search, before, finished=False)
        try:
            kept.forget(search, Lines(sys.stderr))
        except ClusterError:  # a run is at work: nothing was removed
            path.unlink()
            raise
        write_receipt(path, search, before, finished=True)
    elif yes:
        kept.forget(search, Lines(sys.stderr))
    written = str(path) if yes and delete_videos else ""
    code = int(yes and any(found.left for found in search.subjects.values()))
    if as_json:
        rows = [_as_json(found, search, used) for found in search.subjects.values()]
        typer.echo(json.dumps({"subjects": rows, "removed": yes, "receipt": written, "exit_code": code}, default=str))
    else:
        for line in _lines(search, yes, bool(from_)):
            typer.echo(line)
        if written:
            typer.echo(f"receipt: {shown_path(written)}")
        for name in several:
            typer.echo(_choose(name, wanted[name]))
    raise typer.Exit(code)


def _output(text: str, used: Mapping[str, set[Path]]) -> Path:
    """Returns the real path of the output folder that ``--from`` names: itself, its manifest, or a record of a run.

    Raises:
        InputErrors: it is neither an output folder nor a manifest, or the manifest's output folder is missing.
    """
    from lynx_parallel.inputs.load import find_output
    from lynx_parallel.inputs.near_files import near_file
    from lynx_parallel.inputs.records import find_record
    from lynx_parallel.output.folder import Output

    if record := find_record(text):
        return Path(os.path.realpath(record.output))
    if os.path.isdir(text):
        output = Path(os.path.realpath(text))
        if not Output(output).is_one():
            raise InputErrors([f"--from {text}: not an output folder: it holds neither .lynx nor a sidecar"])
        return output
    if "/" in text and not os.path.lexists(text):
        raise InputErrors([f"--from {text}: no such manifest or output folder{near_file(text)}"])
    output = find_output(text)
    if not output.is_dir() and not any(output in outputs for outputs in used.values()):
        message = "does not exist. If --set output named another folder, give that folder"
        raise InputErrors([f"--from {text}: its output folder {output} {message}"])
    return output


def _choose(name: str, outputs: set[Path]) -> str:
    listed = ", ".join(map(str, sorted(outputs)))
    return f"{name}: used in {len(outputs)} output folders: {listed}. Choose one with --from, or give --everywhere"


def _as_json(found: Found, search: Search, used: Mapping[str, set[Path]]) -> dict[str, Any]:
    from lynx_parallel.subject.forget import KINDS

    outputs = sorted(output for output in search.wanted[found.subject] if output.is_dir())
    known = found.subject in used or bool(found.removable or found.files)
    return {
        "subject": found.subject, "known": known, "outputs": outputs, "videos": found.videos, "left": found.left,
        "files": found.files, "hosts": found.hosts, **{kind: getattr(found, kind) for kind in KINDS},
    }  # fmt: skip


def _lines(search: Search, yes: bool, named: bool) -> Iterator[str]:
    """Yields the lines about a search or a removal."""
    from lynx_parallel.inputs.problems import nearest
    from lynx_parallel.subject.forget import KINDS

    listed = 0
    for name, found in search.subjects.items():
        if not found.removable and not found.files:
            if named:
                yield f"{name}: nothing found; {nearest(name, sorted(search.others - {name}), 'subjects there')}"
            else:
                yield (
                    f"{name}: nothing is cached for this subject in {cache_root() / 'subjects'}. "
                    "For an output folder of another machine or cache, add --from FOLDER"
                )
            continue
        left = set(found.left)
        for kind, words in KINDS.items():
            if paths := getattr(found, kind):
                yield f"{name}: {words}: {len(paths)}"
                for path in paths:
                    yield f"  {'left   ' if path in left and yes else 'removed' if yes else 'remove '} {path}"
        listed += len(found.removable)
        if not found.with_videos:
            yield f"{name}: videos that remain: {len(found.videos)}{', for you to delete:' * bool(found.files)}"
            for path in found.files:
                yield f"  keep    {path}"
        else:
            yield f"{name}: videos: {len(found.videos)}, with their latents, sidecars, posters and logs:"
            for path in (*found.logs, *found.files):
                yield f"  {'left   ' if yes and os.path.lexists(path) else 'removed' if yes else 'remove '} {path}"
            if found.lines:
                yield f"{name}: files with lines about the subject: {len(found.lines)}"
                for path in found.lines:
                    yield f"  {'cleaned' if yes else 'clean  '} {path}"
            if found.takes:
                yield f"{name}: takes with seeds of their own: {found.takes}"
        if found.hosts:
            shown = ", ".join(found.hosts[:MAX_HOSTS])
            rest = f" and {len(found.hosts) - MAX_HOSTS} more" if len(found.hosts) > MAX_HOSTS else ""
            yield f"{name}: also rendered on {shown}{rest}. Run this command there too: each machine has its own cache"
    if search.unowned:
        yield f"files of unknown subjects: {len(search.unowned)}, for you to check:"
        for path in search.unowned:
            yield f"  unknown {path}"
    if listed and not yes:
        yield f"Nothing was removed. Add --yes to remove {listed} paths"
