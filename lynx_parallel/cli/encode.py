"""lynx-render encode: other formats of finished shots, from their saved latents."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

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
from lynx_parallel.cli.options import Debug, Device, Only, TiledDecode
from lynx_parallel.cli.target import TargetArgument, find_target
from lynx_parallel.errors import InputErrors, RenderError
from lynx_parallel.inputs.cluster import DEVICES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lynx_parallel.engine.decoders import DecoderProcess
    from lynx_parallel.inputs.formats import Format
    from lynx_parallel.output.made_files import MadeFiles, Source
    from lynx_parallel.output.marks import Mark
    from lynx_parallel.plan.saved_latents import SavedLatents
    from lynx_parallel.view.lines import Lines


def encode(
    format_: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="h264, h265, webp, png (frames) or poster (first frame).")
    ],
    target: TargetArgument = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="FOLDER", help="Folder for the files; default OUTPUT_FOLDER-FORMAT.")
    ] = None,
    crf: Annotated[
        int | None, typer.Option("--crf", metavar="N", help="h264, h265: 1 (best) to 51; default 18.")
    ] = None,
    quality: Annotated[
        int | None, typer.Option("--quality", metavar="N", help="webp, poster: 1 to 100 (best); default 90.")
    ] = None,
    lossless: Annotated[bool, typer.Option("--lossless", help="h264, h265, webp: keep every value.")] = False,
    fps: Annotated[
        float | None, typer.Option("--fps", metavar="N", help="Frames per second; default that of the shot.")
    ] = None,
    name: Annotated[
        str, typer.Option("--name", metavar="PATTERN", help="Names of the files, as for export.")
    ] = "{name}",
    only: Only = None,
    picked: Picked = False,
    replace: Replace = False,
    tiled_decode: TiledDecode = False,
    device: Device = "auto",
    as_json: JsonAtEnd = False,
    debug: Debug = False,
) -> None:
    """Make other formats of finished shots, from their saved latents.

    The frames are those of the render. Run it again to do what is left. Exits with 1 if a shot has no latents.

    Examples:
        lynx-render encode renders/spring --format webp --quality 80
        lynx-render encode renders/spring --format h265 --crf 22 --picked
        lynx-render encode --format png --only 'ada/*' --to frames
    """
    from lynx_parallel.inputs.finished import names_of
    from lynx_parallel.inputs.formats import read_format
    from lynx_parallel.output.made_files import MadeFiles, Source
    from lynx_parallel.output.marks import mark_of
    from lynx_parallel.plan.saved_latents import LatentsFinder

    say = lines_of(as_json)
    wrong = [] if device in DEVICES else [f"--device {device}: must be {', '.join(DEVICES[:-1])} or {DEVICES[-1]}"]
    try:
        form = read_format(format_, fps=fps, crf=crf, quality=quality, lossless=lossless)
    except InputErrors as error:
        raise InputErrors([*error.lines, *wrong]) from None
    if wrong:
        raise InputErrors(wrong)
    found = find_target(target)
    made = MadeFiles(folder_of(to, found, form.name))
    selection = select(found, only, picked, say)
    finder, failed, tasks = LatentsFinder(found.output, say), dict[str, str](), list[_Task]()
    files = names_of(selection.shots, name, form.suffix)
    for shot, file in zip(selection.shots, files, strict=True):
        try:
            latents = finder.find(shot.name, shot.sidecar)
        except RenderError as error:
            failed[shot.name] = str(error)
            say(f"{shot.name}: {error}")
            continue
        moving = {"fps": form.fps or latents.fps} if form.moves else {}
        how = {**asdict(form), "fps": None, **moving, "tiled": tiled_decode or latents.tiled}
        tasks.append(_Task(shot.name, file, latents, Source(latents.sha256, how), mark_of(shot.sidecar)))
    finder.save()
    left, done = split_by_state(made, {task.file: task.source for task in tasks}, replace=replace)
    todo = [task for task in tasks if task.file in {*left}]
    if todo:
        failed |= _work(made, form, todo, device, say)
    end_making(made, selection, todo, done, failed, say, as_json=as_json)


@dataclass(frozen=True)
class _Task:
    """One shot. ``file`` is the name of the file to make."""

    name: str
    file: str
    latents: SavedLatents
    source: Source
    mark: Mark


def _work(made: MadeFiles, form: Format, tasks: Sequence[_Task], device: str, say: Lines) -> dict[str, str]:
    """Does all tasks, one on each GPU at the same time. Returns why shots failed, by name."""
    from lynx_parallel.engine.crew import Crew, places, visible_gpus
    from lynx_parallel.engine.decoders import DecoderProcess

    gpus = [] if device == "cpu" else visible_gpus()
    with made.working(), Crew(places(gpus)) as crew:
        decoders = {
            gpu: DecoderProcess(crew, device, gpu, made.private / "logs" / f"decoder-{gpu or 'cpu'}.log")
            for gpu in places(gpus)
        }
        return make_all(crew, made, tasks, lambda task, gpu: _make(made, form, task, decoders[gpu]), say)


def _make(made: MadeFiles, form: Format, task: _Task, decoder: DecoderProcess) -> str:
    """Makes one file, in a thread. Returns why it failed, or nothing."""
    latents, part = task.latents, made.part(task.file)
    try:
        order = {
            "latents": str(latents.path), "sha256": latents.sha256, "vae": str(latents.vae),
            "vae_dtype": latents.vae_dtype, "tiled": task.source.how["tiled"], "format": asdict(form),
            "fps": latents.fps, "mark": asdict(task.mark), "out": str(part),
        }  # fmt: skip
        fault = decoder.ask(order)
        if not fault:
            made.publish(part, task.file, task.source)
        return fault
    finally:
        made.discard(part)
