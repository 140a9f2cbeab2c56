"""lynx-render status and failures: what the files of an output folder say, from any shell or machine."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lynx_parallel.cli.help import show_help
from lynx_parallel.cli.options import Debug, Json
from lynx_parallel.cli.target import Target, TargetArgument, find_target

if TYPE_CHECKING:
    from lynx_parallel.output.found_drivers import FoundDriver
    from lynx_parallel.output.run_status import RunStatus
    from lynx_parallel.output.shot_states import ShotState

WATCH_EVERY_S = 2.0
MOST_FAILURES = 10
"""Failures that ``status`` shows. ``failures`` shows all."""


def status(
    target: TargetArgument = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every 2 seconds until the run ends.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show how far a campaign is, and what its run does now.

    It reads files alone, also those of a run on another machine.

    Examples:
        lynx-render status                   the output folder that was written last
        lynx-render status campaign.yaml --watch
    """
    found = find_target(target)
    names = found.names
    if as_json:
        typer.echo(json.dumps(_as_json(found, names)))
        return
    if watch:
        _watch(found, names)
    else:
        _show(found, names)


def failures(target: TargetArgument = None, as_json: Json = False, debug: Debug = False) -> None:
    """List the shots that failed or are blocked.

    One line each, with the reason, what to do, and a code for lynx-render help. Exits with 1 if there are any.

    Examples:
        lynx-render failures campaign.yaml
        lynx-render failures renders/spring --json
    """
    from lynx_parallel.output.shot_states import shot_states

    found = find_target(target)
    shots = _failed(shot_states(found.output, found.names, read=False))
    if as_json:
        rows = [
            {"name": shot.name, "state": shot.state, "reason": shot.reason, "logs": shot.logs, "code": _code(shot)}
            | {"remedy": _remedy(shot)}
            for shot in shots
        ]
        typer.echo(json.dumps({"output": str(found.output.folder), "failures": rows, "exit_code": int(bool(shots))}))
    else:
        for shot in shots:
            typer.echo(f"{shot.name}: {shot.state}: {shot.reason.rstrip('.')}. {_remedy(shot)} [{_code(shot)}]")
        show_help(map(_code, shots))
        if not shots:
            typer.echo(f"{found.shown}: no shot has failed")
    raise typer.Exit(int(bool(shots)))


def _failed(shots: list[ShotState]) -> list[ShotState]:
    return [shot for shot in shots if shot.state in ("failed", "blocked")]


def _code(shot: ShotState) -> str:
    """Returns the code of a shot that failed. Journals of earlier versions have none."""
    from lynx_parallel.errors import BLOCKED_CODE
    from lynx_parallel.failures import code_of_reason

    return shot.code or (BLOCKED_CODE if shot.state == "blocked" else code_of_reason(shot.reason))


def _remedy(shot: ShotState) -> str:
    """Returns what to do about a shot that failed, in a sentence or two."""
    from lynx_parallel.failures import FREE_UNKNOWN, known_remedy

    if shot.state == "blocked":
        return "Correct the manifest or the picture, then run again."
    remedy = known_remedy(shot.reason).replace(f" ({FREE_UNKNOWN})", "")
    if not remedy:
        return "Correct the input or read the logs, then run again."
    return remedy if remedy.endswith("run again.") else f"{remedy} Then run again."


@dataclass(frozen=True)
class Drivers:
    """The drivers that are at work in an output folder, or else the last one.

    Attributes:
        each: one for the whole folder, or one for each shard.
        total: shots of the manifest, or of all its shards; None if unknown.
    """

    each: Sequence[FoundDriver]
    total: int | None

    @property
    def alive(self) -> bool:
        return any(driver.alive for driver in self.each)

    @property
    def run(self) -> RunStatus | None:
        """The status of the only driver; None if there are several."""
        return self.each[0].status if len(self.each) == 1 else None


def _drivers(found: Target) -> Drivers:
    from lynx_parallel.output.found_drivers import find_drivers

    every = find_drivers(found.output)
    chosen = [driver for driver in every if driver.alive]
    if not chosen:
        chosen = [max(every, key=lambda driver: driver.status.updated if driver.status else "")]
    division = chosen[0].shard.count if chosen[0].shard else None
    statuses = [driver.status for driver in every if (driver.shard.count if driver.shard else None) == division]
    known = [status.total for status in statuses if status is not None]
    return Drivers(chosen, sum(known) if known else None)


def _as_json(found: Target, names: list[str] | None) -> dict[str, Any]:
    from lynx_parallel.output.shot_states import count_states, shot_states

    drivers = _drivers(found)  # read first: a shot that a status counts as done then has its sidecar
    shots, first = shot_states(found.output, names, read=False), drivers.each[0]
    failed = [
        {"name": one.name, "state": one.state, "reason": one.reason, "logs": one.logs, "code": _code(one)}
        for one in _failed(shots)
    ]
    return {
        "output": str(found.output.folder), "counts": _with_unknown(count_states(shots), drivers.total, names),
        "alive": drivers.alive, "driver": first.who, "run": first.status.as_json() if first.status else None,
        "shards": [driver.as_json() for driver in drivers.each if driver.shard], "failures": failed,
    }  # fmt: skip


def _with_unknown(counts: dict[Any, int], total: int | None, names: list[str] | None) -> dict[str, int]:
    """Adds the shots that only the run's manifest knows, because nothing was tried for them yet."""
    if names is None and total is not None:
        return {**counts, "left": counts["left"] + max(total - sum(counts.values()), 0)}
    return dict(counts)


def _lines(found: Target, names: list[str] | None) -> tuple[list[str], RunStatus | None, list[ShotState], bool]:
    """Returns the lines about all shots, the run to show, the failed shots, and whether a run is alive."""
    from lynx_parallel.output.shot_states import count_states, shot_states

    drivers = _drivers(found)
    shots = shot_states(found.output, names, read=False)
    counts = _with_unknown(count_states(shots), drivers.total, names)
    parts = [f"{counts['done']} of {sum(counts.values())} shots done"]
    parts += [
        f"{counts[state]} {state}"
        for state in ("failed", "blocked", "auditioned", "not chosen", "left")
        if counts[state]
    ]
    lines = [f"{found.shown}: {', '.join(parts)}", *map(_line, drivers.each)]
    run = drivers.run if drivers.alive else None
    return lines, run if run is not None and run.exit_code is None else None, _failed(shots), drivers.alive


def _line(driver: FoundDriver) -> str:
    """Returns a line about a driver."""
    from lynx_parallel.text import rough_duration
    from lynx_parallel.view.run_text import ago

    run, shard = driver.status, f"shard {driver.shard}: " if driver.shard else ""
    if run is None:
        return f"{shard}{driver.who} is at work here" if driver.alive else "no run is at work"
    if driver.alive:
        of_shard = f", {run.done + run.finished} of {run.total} shots" if shard else ""
        at_work = f"{run.state}: {driver.who}, for {rough_duration(run.seconds)}"
        return f"{shard}{at_work}{of_shard}, updated {ago(run.updated)} ago"
    if run.exit_code is None:
        return (
            f"{shard}the driver (process {run.pid} on {run.host}) was killed or cannot be reached; "
            f"its last update was {ago(run.updated)} ago; run again to resume"
        )
    return (
        f"no run is at work; the last one{f' ({shard[:-2]})' if shard else ''} ended {ago(run.updated)} ago "
        f"with exit code {run.exit_code}, after {rough_duration(run.seconds)}"
    )


def _show(found: Target, names: list[str] | None) -> None:
    if not sys.stdout.isatty():
        lines, run, failed, _ = _lines(found, names)
        if run is None:  # without the import of rich
            for line in (*lines, *(f"{start}{rest}" for start, rest in _failed_lines(found, failed))):
                typer.echo(line)
            return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(_view(found, names, console)[0])


def _view(found: Target, names: list[str] | None, console: Any) -> tuple[Any, bool]:
    """Returns what is shown, and whether the run is alive."""
    from dataclasses import replace

    from rich.console import Group
    from rich.text import Text

    from lynx_parallel.view.live import run_view

    lines, run, failed, alive = _lines(found, names)
    parts: list[Any] = [Text(line) for line in lines]
    if run is not None:
        parts.append(run_view(replace(run, failures=()), console))
    parts += [Text.assemble((start, "red"), rest) for start, rest in _failed_lines(found, failed)]
    return Group(*parts), alive


def _failed_lines(found: Target, failed: list[ShotState]) -> Iterator[tuple[str, str]]:
    """Yields a line for each of the first failed shots, in two parts: its state, and the rest."""
    for shot in failed[:MOST_FAILURES]:
        logs = f" (logs: {shot.logs})" if shot.logs and "(logs: " not in shot.reason else ""
        yield f"{shot.state} ", f"{shot.name}: {shot.reason}{logs}"
    if len(failed) > MOST_FAILURES:
        yield "", f"and {len(failed) - MOST_FAILURES} more: lynx-render failures {found.shown}"


def _watch(found: Target, names: list[str] | None) -> None:
    """Shows the status until no run is alive: in place on a terminal, else again and again."""
    from rich.console import Console
    from rich.live import Live

    from lynx_parallel.view.live import can_be_live

    console = Console(highlight=False, soft_wrap=True)
    with contextlib.ExitStack() as stack:
        show: Callable[[Any], None] = console.print
        if can_be_live(sys.stdout):
            show = partial(stack.enter_context(Live(console=console, auto_refresh=False)).update, refresh=True)
            console.show_cursor(True)
        while True:
            view, alive = _view(found, names, console)
            show(view)
            if not alive:
                return
            time.sleep(WATCH_EVERY_S)
