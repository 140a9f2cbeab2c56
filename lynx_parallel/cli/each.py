"""lynx-render each: a tool of the user's own on every finished video."""

from __future__ import annotations

import contextlib
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lynx_parallel.cli.finished import (
    JsonAtEnd,
    Picked,
    Replace,
    end_making,
    folder_of,
    lines_of,
    make_all,
    select,
    split_by_state,
)
from lynx_parallel.cli.help_text import Command
from lynx_parallel.cli.options import Debug, Only
from lynx_parallel.cli.target import TargetArgument, find_target
from lynx_parallel.text import one_line, shown_path

if TYPE_CHECKING:
    from lynx_parallel.engine.crew import Crew
    from lynx_parallel.inputs.finished import FinishedShot
    from lynx_parallel.inputs.tool_command import ToolCommand
    from lynx_parallel.output.folder import Output
    from lynx_parallel.output.made_files import MadeFiles, Source

_COMMAND = "lynx_parallel.command"
_LAST_BYTES = 4096
_LAST_LINES = 3


class EachCommand(Command):
    """Keeps what follows ``--`` apart, because the argument before it may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        ctx.meta[_COMMAND] = args[end + 1 :]
        return super().parse_args(ctx, args[:end])

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "-- COMMAND {in} {out}"]


def each(
    context: typer.Context,
    target: TargetArgument = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="FOLDER", help="Folder for the results; default OUTPUT_FOLDER-each.")
    ] = None,
    suffix: Annotated[str, typer.Option("--suffix", metavar=".SUFFIX", help="Suffix of the results.")] = ".mp4",
    name: Annotated[
        str, typer.Option("--name", metavar="PATTERN", help="Names of the results, as for export.")
    ] = "{name}",
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", metavar="N", min=1, help="Tasks at the same time; default one per GPU, else 1."),
    ] = None,
    only: Only = None,
    picked: Picked = False,
    replace: Replace = False,
    as_json: JsonAtEnd = False,
    debug: Debug = False,
) -> None:
    """Run COMMAND on every finished video: an upscaler, a sound pass.

    {in} stands for the video and {out} for the file to write. {name}, {subject}, {prompt}, {variant}, {take}, {seed},
    {width}, {height}, {num_frames} and {fps} may be used, too. No shell is involved. Each task gets one GPU
    (CUDA_VISIBLE_DEVICES). Run it again to do what is left.

    Examples:
        lynx-render each renders/spring --picked -- upscale {in} {out}
        lynx-render each --to sound --jobs 4 -- add-sound --seed {seed} {in} {out}
    """
    from lynx_parallel.engine.crew import Crew, places, visible_gpus
    from lynx_parallel.inputs.finished import names_of
    from lynx_parallel.inputs.tool_command import read_tool_command
    from lynx_parallel.output.made_files import MadeFiles, Source

    say = lines_of(as_json)
    command = read_tool_command(context.meta.get(_COMMAND, ()), suffix)
    found = find_target(target)
    made = MadeFiles(folder_of(to, found, "each"))
    selection = select(found, only, picked, say)
    files = names_of(selection.shots, name, suffix)
    how = {"command": list(command.words)}
    sources = {
        file: Source(str(shot.sidecar["outputs"]["video"].get("sha256")), how)
        for file, shot in zip(files, selection.shots, strict=True)
    }
    left, done = split_by_state(made, sources, replace=replace)
    shots = dict(zip(files, selection.shots, strict=True))
    tasks = [_Task(shots[file], file, sources[file]) for file in left]
    failed: dict[str, str] = {}
    if tasks:
        with made.working(), Crew(places(visible_gpus(), jobs)) as crew:
            failed = make_all(crew, made, tasks, _Tool(crew, command, found.output, made).run, say)
    end_making(made, selection, tasks, done, failed, say, as_json=as_json)


@dataclass(frozen=True)
class _Task:
    """One video. ``file`` is the name of the result."""

    shot: FinishedShot
    file: str
    source: Source

    @property
    def name(self) -> str:
        return self.shot.name


@dataclass(frozen=True)
class _Tool:
    """Runs the command on one video after another."""

    crew: Crew
    command: ToolCommand
    output: Output
    made: MadeFiles

    def run(self, task: _Task, gpu: str | None) -> str:
        """Makes one file, in a thread. Returns why it failed, or nothing.

        Raises:
            OSError: a file cannot be read or written, or the command cannot be started.
        """
        if not self.output.intact(task.shot.name, task.shot.sidecar, "video", verify=True):
            return "its video is damaged; render again to replace it"
        part = self.made.part(task.file)
        try:
            video = self.output.path(task.shot.name, "video").absolute()
            status = self._tool(self.command.filled({**task.shot.fields, "in": video, "out": part}), task.file, gpu)
            if status:
                how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
                return self._with_last_words(how, task.file)
            if not part.is_file() or not part.stat().st_size:
                how = "is empty" if part.is_file() else "was not written"
                return self._with_last_words(f"exit status 0, but {{out}} {how}", task.file)
            self.made.publish(part, task.file, task.source)
            return ""
        finally:
            self.made.discard(part)

    def _tool(self, words: list[str], file: str, gpu: str | None) -> int:
        """Returns the exit status of the command."""
        from lynx_parallel.engine.isolation import users_environment

        environment = users_environment() | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
        logs = [self.made.log(file, stream) for stream in ("stdout", "stderr")]
        logs[0].parent.mkdir(parents=True, exist_ok=True)
        with logs[0].open("wb") as stdout, logs[1].open("wb") as stderr:
            child = self.crew.start(words, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
            return self.crew.wait(child)

    def _with_last_words(self, how: str, file: str) -> str:
        log = self.made.log(file, "stderr")
        said = last_lines(log)
        return f"{how}{': ' if said else ''}{said} (log: {shown_path(log)})"


def last_lines(log: Path) -> str:
    """Returns the last lines of a log on one line; nothing if it is empty. A progress bar counts as its last state."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(-min(_LAST_BYTES, log.stat().st_size), 2)
        text = file.read().decode(errors="replace")
        lines = [words for line in text.replace("\r", "\n").split("\n") if (words := line.strip())]
        return one_line("; ".join(lines[-_LAST_LINES:])) if lines else ""
    return ""
