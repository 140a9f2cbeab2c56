"""lynx-render export: copies of the finished videos, with names for those who receive them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lynx_parallel.cli.finished import JsonAtEnd, Picked, folder_of, lines_of, select
from lynx_parallel.cli.options import Debug, Only
from lynx_parallel.cli.target import Target, TargetArgument, find_target
from lynx_parallel.errors import ClusterError, InputErrors
from lynx_parallel.inputs.names import DELIVERED_NAME
from lynx_parallel.text import counted, shown_path, shown_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lynx_parallel.inputs.finished import FinishedShot
    from lynx_parallel.output.delivery import Delivery, Video
    from lynx_parallel.view.lines import Lines


def export(
    to: Annotated[str, typer.Option("--to", metavar="FOLDER", help="Folder for the copies.")],
    target: TargetArgument = None,
    only: Only = None,
    picked: Picked = False,
    name: Annotated[
        str,
        typer.Option(
            "--name", metavar="PATTERN",
            help="Names: fields name, subject, prompt, variant, take, seed, width, height, num_frames, fps.",
        ),
    ] = DELIVERED_NAME,
    link: Annotated[bool, typer.Option("--link", help="Make hard links instead of copies.")] = False,
    as_json: JsonAtEnd = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Copy the finished videos to a folder, with names of their own.

    videos.csv and videos.json list them. Nothing that is there is replaced. Exits with 1 if a video is damaged.

    Examples:
        lynx-render export renders/spring --to delivery --picked
        lynx-render export campaign.yaml --to copies --name '{subject}/{prompt}'
        lynx-render export --to delivery --only 'ada/*' --link
    """
    from lynx_parallel.inputs.finished import names_of
    from lynx_parallel.output.delivery import Delivery
    from lynx_parallel.output.sidecar import SUFFIXES

    say = lines_of(as_json)
    found = find_target(target)
    delivery = Delivery(folder_of(to, found), link=link)
    selection = select(found, only, picked, say)
    files = names_of(selection.shots, name, SUFFIXES["video"])
    videos = [_video(found, shot, file) for shot, file in zip(selection.shots, files, strict=True)]
    present, damaged = _deliver(delivery, videos, say) if videos else (set(), {})
    exit_code = int(bool(damaged) or not videos)
    exported = [video for video in videos if video.file not in present and video.facts["name"] not in damaged]
    if videos:
        size = shown_size(sum(video.size for video in exported))
        known = f", {len(present)} already there" if present else ""
        bad = f", {len(damaged)} damaged" if damaged else ""
        say(f"{shown_path(delivery.folder)}: {counted(len(exported), 'video')} exported, {size}{known}{bad}")
    if as_json:
        result = {
            "to": str(delivery.folder), "exported": [video.row for video in exported], "present": sorted(present),
            "damaged": damaged, "left_out": dict(selection.left_out), "unfinished": selection.unfinished,
            "total": selection.total, "exit_code": exit_code,
        }  # fmt: skip
        typer.echo(json.dumps(result))
    raise typer.Exit(exit_code)


def _deliver(delivery: Delivery, videos: Sequence[Video], say: Lines) -> tuple[set[str], dict[str, str]]:
    """Copies the videos that are not there yet. Returns the files that were there, and the damaged shots.

    Raises:
        InputErrors: files are in the way. Nothing is copied then.
        ClusterError: there is too little room, or the folder is in use.
    """
    present, conflicts = delivery.compare(videos)
    if conflicts:
        raise InputErrors([f"{shown_path(path)}: {reason}" for path, reason in conflicts.items()])
    left = [video for video in videos if video.file not in present]
    with delivery.working(videos):
        if not delivery.link:
            _check_room(delivery.folder, sum(video.size for video in left))
        damaged = {}
        for video in left:
            if fault := delivery.add(video):
                damaged[str(video.facts["name"])] = fault
                say(f"{video.facts['name']}: {fault}; render again to replace it")
        if delivery.no_links:
            say(f"{shown_path(delivery.folder)}: no hard links possible ({delivery.no_links}): copied instead")
        delivery.write_lists(video for video in videos if video.facts["name"] not in damaged)
    return present, damaged


def _check_room(folder: Path, size: int) -> None:
    """Raises ClusterError if the copies do not fit on the disk."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ClusterError(f"{shown_path(folder)}: {shown_size(size)} are needed, {shown_size(free)} are free")


def _video(found: Target, shot: FinishedShot, file: str) -> Video:
    from lynx_parallel.output.delivery import Video

    record: dict[str, Any] = shot.sidecar["outputs"]["video"]
    facts = {
        **{name: shot.fields[name] for name in ("name", "subject", "prompt", "variant", "take", "seed")},
        "prompt_text": shot.sidecar["settings"].get("prompt", ""),
        "finished": shot.sidecar.get("finished"),
        **{f"{kind}_digest": shot.sidecar["digests"][kind] for kind in ("latents", "video")},
        "settings": shot.settings,
    }
    return Video(found.output.path(shot.name, "video"), file, int(record["size"]), str(record.get("sha256")), facts)
