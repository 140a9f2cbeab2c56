"""The live view of a run on a terminal: a bar, a row for each gang, and the last failures, below the printed lines."""

from __future__ import annotations

import contextlib
import os
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lynx_parallel.output.run_status import RunStatus
from lynx_parallel.text import counted
from lynx_parallel.view.lines import Lines
from lynx_parallel.view.run_text import gang_text, gpu_hours, time_left

MOST_SHOWN_FAILURES = 3
NARROW = 100
"""Columns of a terminal below which seconds per step, memory and hosts are left out."""


def can_be_live(stream: TextIO) -> bool:
    """Returns whether a stream is a terminal that can move its cursor."""
    try:
        return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    except (AttributeError, ValueError):  # closed
        return False


class Screen(Lines):
    """Prints lines above a view that is drawn again about every second.

    Args:
        stream: a terminal.
    """

    def __init__(self, stream: TextIO):
        super().__init__(stream)
        self._console = Console(file=stream, highlight=False, soft_wrap=True)
        self._live: Live | None = None

    def __call__(self, line: str) -> None:
        if self._live is None:
            super().__call__(line)
            return
        with contextlib.suppress(OSError):
            self._console.print(Text(line))

    def progress(self, line: str) -> None:
        """Leaves out a line that the view shows all the time. Before the view, it is printed."""
        if self._live is None:
            self(line)

    def watch(self, status: RunStatus) -> None:
        """Draws the status. The last one removes the view."""
        with contextlib.suppress(OSError):
            if status.exit_code is not None:
                self.close()
                return
            if self._live is None:
                self._live = Live(console=self._console, auto_refresh=False, transient=True)
                self._live.start()
                self._console.show_cursor(True)  # a killed process could not show it again
            self._live.update(run_view(status, self._console), refresh=True)

    def close(self) -> None:
        """Removes the view."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.close()


def run_view(status: RunStatus, console: Console) -> RenderableType:
    """Returns the view of a run for this console: it fits its width, and its height as far as it can."""
    width, height = console.size
    rows: list[RenderableType] = [_headline(status, width)]
    room = max(height - 6 - min(len(status.failures), MOST_SHOWN_FAILURES), 1)
    if status.gangs:
        rows.append(_gangs(status, width, room))
    if len(status.gangs) > room:
        rows.append(Text(f"  and {counted(len(status.gangs) - room, 'gang')} more", style="dim"))
    for failure in status.failures[-MOST_SHOWN_FAILURES:]:
        line = Text.assemble(("failed ", "red"), failure.name, ": ", failure.reason)
        rows.append(_on_one_line(line))
    return Group(*rows)


def _headline(status: RunStatus, width: int) -> RenderableType:
    words = [f"{100 * status.fraction:3.0f} %", f"{status.finished}/{status.to_make} shots"]
    words += [text for text in (time_left(status), gpu_hours(status)) if text]
    if status.state == "stopping":
        words.append("stopping")
    if status.failed:
        words.append(f"{status.failed} failed")
    text = Text("  ".join(words), no_wrap=True)
    bar = ProgressBar(
        total=1.0, completed=status.fraction, width=max(min(width - len(text) - 2, 60), 8),
        complete_style="green", finished_style="green", style="bright_black",
    )  # fmt: skip
    line = Table.grid(padding=(0, 2))
    line.add_row(bar, text)
    return line


def _gangs(status: RunStatus, width: int, room: int) -> RenderableType:
    wide = width >= NARROW
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    several = len(status.gangs) > 1
    if several:
        table.add_column("gang", justify="right", no_wrap=True)
    options: dict[str, Any] = {"no_wrap": True, "overflow": "ellipsis"}
    table.add_column("doing", **options)
    table.add_column("shot", ratio=1 if wide else None, **options)
    table.add_column("step", justify="right", no_wrap=True)
    if wide:
        table.add_column("per step", justify="right", no_wrap=True)
        table.add_column("GPU memory", justify="right", no_wrap=True)
        table.add_column("ranks", **options)
    for number, gang in enumerate(status.gangs[:room], start=1):
        stage, shot, step, pace, memory = gang_text(gang)
        cells = [*([str(number)] if several else []), stage, shot, step]
        if wide:
            where = f" on {', '.join(gang.hosts)}" if gang.hosts else ""
            cells += [pace, memory, f"{gang.ranks} × {gang.device}{where}" if gang.device else str(gang.ranks)]
        table.add_row(*map(Text, cells))
    return table


def _on_one_line(text: Text) -> RenderableType:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
