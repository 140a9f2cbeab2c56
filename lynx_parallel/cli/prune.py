"""lynx-render prune: lists what an output folder no longer needs, and removes it."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lynx_parallel.cli.finished import JsonAtEnd, lines_of
from lynx_parallel.cli.help_text import OUTPUT
from lynx_parallel.cli.options import Debug
from lynx_parallel.cli.target import Target, TargetArgument, find_target
from lynx_parallel.errors import InputErrors, collect
from lynx_parallel.text import counted, rough_duration, shown_path, shown_size
from lynx_parallel.view.lines import Lines

if TYPE_CHECKING:
    from lynx_parallel.output.prune import Entry

_DAY_S = 86400


def prune(
    target: TargetArgument = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="30d", help="Only what was written longer ago: 30d, 12h.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option("--keep", metavar="50GB", help="Keep the newest up to this size: 500MB, 50GB, 1TB.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is listed.")] = False,
    files: Annotated[bool, typer.Option("--files", help="List every file.", rich_help_panel=OUTPUT)] = False,
    as_json: JsonAtEnd = False,
    debug: Debug = False,
) -> None:
    """List what an output folder no longer needs. With --yes, remove it.

    That is superseded and damaged files, abandoned resume states, and logs of finished shots. Finished videos, their
    latents and sidecars stay. With --older-than and --keep together, only what both allow is removed. Exits with 1 if
    a file cannot be removed.

    Examples:
        lynx-render prune renders/spring
        lynx-render prune campaign.yaml --older-than 30d --yes
        lynx-render prune renders/spring --keep 50GB --files
    """
    from lynx_parallel.output.prune import KINDS, choose, find_prunable
    from lynx_parallel.output.prune import prune as remove
    from lynx_parallel.output.shard import FolderLock

    say = lines_of(as_json)
    before, most = _limits(older_than, keep)
    found = find_target(target)
    removed: list[Entry] = []
    errors: dict[Path, str] = {}
    with contextlib.ExitStack() as stack:
        if yes and found.output.private.is_dir():  # before it is planned: a run may be about to use a state
            stack.enter_context(FolderLock(found.output.private))
        in_use, why = _states_in_use(found, say)
        entries = choose(find_prunable(found.output, in_use), before=before, keep=most)
        if yes:
            removed, errors = remove(found.output, entries)
    for line in _lines(found, entries, files, why):
        say(line)
    for path, reason in errors.items():
        Lines(sys.stderr)(f"{shown_path(path)}: cannot be removed: {reason}")
    if yes:
        say(f"removed {_amount(removed)}")
    elif entries:
        say(f"Nothing was removed. Add --yes to remove {_amount(entries)}")
    exit_code = int(bool(errors))
    if as_json:
        rows = {kind: _as_json(entries, kind) for kind in KINDS}
        result = {
            "output": str(found.output.folder), "prunable": rows, "states_kept": why or None,
            "removed": {"files": _count(removed), "bytes": _size(removed)},
            "errors": {str(path): reason for path, reason in errors.items()}, "exit_code": exit_code,
        }  # fmt: skip
        typer.echo(json.dumps(result))
    raise typer.Exit(exit_code)


def _limits(older_than: str | None, keep: str | None) -> tuple[float | None, float | None]:
    """Returns the time before which files were written, in seconds since the epoch, and the bytes to keep.

    Raises:
        InputErrors: one line per wrong option.
    """
    from lynx_parallel.inputs.amounts import read_age, read_size

    age, size = collect(
        [
            lambda: None if older_than is None else read_age(older_than, "--older-than"),
            lambda: None if keep is None else read_size(keep, "--keep"),
        ]
    )
    return None if age is None else time.time() - age, size


def _states_in_use(found: Target, say: Lines) -> tuple[set[str] | None, str]:
    """Returns the latents digests of the shots that are not done, or None and the reason why they are not known.

    The shots are those of the manifest that the user named, and those of the last run: it may have had other settings.

    Raises:
        InputErrors: the manifest that the user named has mistakes.
    """
    from lynx_parallel.cli.load import load_parts
    from lynx_parallel.output.prune import resume_states

    if not resume_states(found.output):  # planning takes time
        return set(), ""
    named = [found.campaign] if found.manifest else []
    campaigns = [campaign for campaign in (*named, Target(found.output).campaign) if campaign is not None]
    if not campaigns:
        return None, "the manifest of the last run cannot be read any more; name a manifest"
    in_use = set[str]()
    for campaign in campaigns:
        try:
            with say.if_slow("comparing the campaign with its output folder"):
                items = load_parts(campaign, whole=False, download=False).replan().items
        except InputErrors as error:
            return None, error.lines[0]
        if any(item.action == "unknown" for item in items):
            return None, "weights are missing on this machine, so it is not known which are in use"
        in_use |= {item.digests.resume for item in items if item.action != "done"}
    return in_use, ""


def _lines(found: Target, entries: Sequence[Entry], files: bool, why: str) -> Iterator[str]:
    """Yields a line for each kind of entries, and with ``files`` one for each file."""
    from lynx_parallel.output.prune import KINDS

    for kind, words in KINDS.items():
        if chosen := [entry for entry in entries if entry.kind == kind]:
            oldest, newest = (pick(entry.written for entry in chosen) for pick in (min, max))
            ages = " to ".join(dict.fromkeys([_shown_age(newest), _shown_age(oldest)]))
            yield f"{found.shown}: {words}: {_amount(chosen)}, {ages} old"
            if files:
                yield from (f"  {shown_path(path)}" for entry in chosen for path in entry.files)
    if why:
        yield f"{found.shown}: all resume states are kept: {why}"
    if not entries:
        yield f"{found.shown}: nothing to remove"


def _shown_age(written: float) -> str:
    """Returns how long ago a file was written, rounded: ``34 days`` or ``3 h 50 min``."""
    seconds = max(time.time() - written, 0)
    return f"{seconds / _DAY_S:.0f} days" if seconds >= 2 * _DAY_S else rough_duration(seconds)


def _amount(entries: Sequence[Entry]) -> str:
    return f"{counted(_count(entries), 'file')}, {shown_size(_size(entries))}"


def _count(entries: Sequence[Entry]) -> int:
    return sum(len(entry.files) for entry in entries)


def _size(entries: Sequence[Entry]) -> int:
    return sum(entry.size for entry in entries)


def _as_json(entries: Sequence[Entry], kind: str) -> dict[str, Any]:
    chosen = [entry for entry in entries if entry.kind == kind]
    paths = [str(path) for entry in chosen for path in entry.files]
    return {"files": paths, "bytes": _size(chosen), "oldest": min((one.written for one in chosen), default=None)}
