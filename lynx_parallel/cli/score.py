"""lynx-render score: how much the faces of finished videos look like their subjects."""

from __future__ import annotations

import csv
import json
import os
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from lynx_parallel.cli.finished import JsonAtEnd, lines_of, select
from lynx_parallel.cli.help_text import OUTPUT
from lynx_parallel.cli.options import Debug, Only
from lynx_parallel.cli.target import Target, TargetArgument, find_target
from lynx_parallel.errors import InputErrors
from lynx_parallel.text import counted, shown_path

if TYPE_CHECKING:
    from lynx_parallel.inputs.recognizers import Recognizer
    from lynx_parallel.output.scores import IdentityScore
    from lynx_parallel.stages.score_many import ScoreTask

COLUMNS = ("name", "subject", "video", "recognizer", "scale", "threshold", "state", "mean", "worst", "with_face",
           "drift", "frames", "model")  # fmt: skip
"""Columns of ``--csv``."""


def score(
    target: TargetArgument = None,
    recognizer: Annotated[
        list[str] | None,
        typer.Option("--recognizer", metavar="NAME[:PATH]",
                     help="dlib, insightface:PACK, sface:FOLDER or arcface_ir_se50; may be given several times. "
                     "Default: that of the manifest, else dlib."),
    ] = None,
    videos: Annotated[
        str | None,
        typer.Option("--videos", metavar="PATTERN",
                     help="Score these files instead of an output folder: 'clips/{subject}_*.mp4'."),
    ] = None,
    faces: Annotated[
        str | None,
        typer.Option("--faces", metavar="PATTERN", help="The picture of each of --videos: 'faces/{subject}.*'."),
    ] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", metavar="N", min=1, help="Frames of a video to score; default 16.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", metavar="N", min=1, help="Processes; default one per core.")
    ] = None,
    only: Only = None,
    again: Annotated[bool, typer.Option("--again", help="Also score what has scores already.")] = False,
    csv_file: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", help="Write a table, one line per video.", rich_help_panel=OUTPUT),
    ] = None,
    as_json: JsonAtEnd = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Score how much the face in each video looks like the subject.

    Each recognizer has a scale of its own; never compare scores of two. A video without a face has no score. Scores of
    an output folder are kept, for the report and the next call. Exits with 1 if a video cannot be scored.

    Examples:
        lynx-render score renders/spring
        lynx-render score campaign.yaml --recognizer sface:opencv --csv s.csv
        lynx-render score --videos 'clips/{who}_*.mp4' --faces 'faces/{who}.*'
    """
    from lynx_parallel.stages.score_many import score_many

    say = lines_of(as_json)
    if (videos is None) != (faces is None):
        raise InputErrors(["--videos and --faces: give both, or neither"])
    if videos is not None and faces is not None:
        if target is not None:
            raise InputErrors([f"{target}: give an output folder, or --videos and --faces"])
        work = _of_files(videos, faces, _recognizers(recognizer, None), frames)
    else:
        work = _of_target(find_target(target), recognizer, only, frames, again=again)
    failed = dict(work.failed)
    for name, reason in failed.items():
        say(f"{name}: not scored: {reason}")
    results = list(work.known)
    for task, found in score_many(work.tasks, jobs or os.cpu_count() or 1) if work.tasks else ():
        if isinstance(found, str):
            failed[task.name] = found
            say(f"{task.name}: not scored: {found}")
            continue
        if work.target is not None:
            _keep(work.target, task, found)
        if isinstance(found, float):
            say(f"{task.name}: {task.recognizer.name}: {found:.3f}")
            continue
        results.append(Result(task.name, task.subject, task.video, found))
        say(f"{task.name}: {in_words(found)}")
    results.sort(key=lambda one: (one.name, one.score.recognizer))
    for line in summary(results):
        say(line)
    if csv_file is not None:
        _write_csv(csv_file, results)
        say(f"table: {shown_path(csv_file)}")
    exit_code = int(bool(failed) or not (results or work.tasks))
    if as_json:
        rows = [{**asdict(one.score), "name": one.name, "subject": one.subject, "video": str(one.video)}
                for one in results]  # fmt: skip
        typer.echo(json.dumps({"videos": rows, "failed": failed, "exit_code": exit_code}))
    raise typer.Exit(exit_code)


class Result(NamedTuple):
    """A video with the score of one recogniser."""

    name: str
    subject: str
    video: Path
    score: IdentityScore


class _Work(NamedTuple):
    """What is left to score, what has scores, and why others cannot be scored, by name."""

    tasks: list[ScoreTask]
    known: list[Result]
    failed: Mapping[str, str]
    target: Target | None = None


def _recognizers(given: Sequence[str] | None, default: Recognizer | None) -> list[Recognizer]:
    """Returns the recognisers of the options, with absolute paths."""
    from lynx_parallel.inputs.recognizers import Recognizer, parse_recognizer

    found, lines = [], []
    for text in given or ():
        try:
            one = parse_recognizer(text)
        except ValueError as error:
            lines.append(f"--recognizer {text}: {error}")
            continue
        found.append(replace(one, path=os.path.realpath(os.path.expanduser(one.path)) if one.path else ""))
    if lines:
        raise InputErrors(lines)
    return list(dict.fromkeys(found)) or [default or Recognizer("dlib")]


def _usable(recognizers: Sequence[Recognizer]) -> None:
    from lynx_parallel.inputs.recognizers import recognizer_mistake

    if lines := [mistake for one in recognizers if (mistake := recognizer_mistake(one))]:
        raise InputErrors(lines)


def _of_files(videos: str, faces: str, recognizers: Sequence[Recognizer], frames: int | None) -> _Work:
    from lynx_parallel.inputs.quality import DEFAULT_FRAMES
    from lynx_parallel.inputs.video_patterns import find_videos
    from lynx_parallel.stages.score_many import ScoreTask

    _usable(recognizers)
    tasks, failed = [], {}
    for one in find_videos(videos, faces):
        name, subject = shown_path(one.path), one.fields.get("subject", "")
        if one.picture is None:
            failed[name] = f"no picture fits {faces}"
            continue
        tasks += [
            ScoreTask(name, subject, one.path, recognizer, one.picture, "largest", None, frames or DEFAULT_FRAMES)
            for recognizer in recognizers
        ]
    return _Work(tasks, [], failed)


def _of_target(
    found: Target, given: Sequence[str] | None, only: list[str] | None, frames: int | None, *, again: bool
) -> _Work:
    """Returns the finished shots of an output folder.

    Raises:
        InputErrors: the manifest cannot be read, or a recogniser cannot be used.
    """
    from lynx_parallel.inputs.quality import DEFAULT_FRAMES
    from lynx_parallel.inputs.recognizers import with_files
    from lynx_parallel.output.checksums import sha256_file
    from lynx_parallel.output.scores import read_scores
    from lynx_parallel.plan.weights import face_files
    from lynx_parallel.stages.score_many import ScoreTask
    from lynx_parallel.view.lines import Lines

    campaign = found.campaign
    if campaign is None:
        raise InputErrors([f"{found.shown}: the manifest of the last run cannot be read any more: name a manifest"])
    quality = campaign.quality
    count = frames or (quality.frames if quality else DEFAULT_FRAMES)
    face = face_files(campaign.pipeline.face) if campaign.pipeline.face else None
    recognizers = [with_files(one, face) for one in _recognizers(given, quality.recognizer if quality else None)]
    _usable(recognizers)
    selection = select(found, only, False, Lines(sys.stderr))
    subjects = {subject.id: subject for subject in campaign.subjects}
    pictures: dict[Path, str] = {}
    tasks: list[ScoreTask] = []
    known, failed = [], {}
    for shot in selection.shots:
        subject = subjects.get(str(shot.fields["subject"]))
        if subject is None or subject.image is None:
            failed[shot.name] = "the manifest has no picture of its subject"
            continue
        if not found.output.intact(shot.name, shot.sidecar, "video"):
            failed[shot.name] = "its video is damaged; render again to replace it"
            continue
        if subject.image not in pictures:
            pictures[subject.image] = sha256_file(subject.image)
        path = found.output.path(shot.name, "video")
        scores = read_scores(found.output.scores(shot.name), str(shot.sidecar["outputs"]["video"].get("sha256")))
        for recognizer in recognizers:
            old = scores.identity.get(recognizer.name) if scores and not again else None
            if old is not None and old.reference == pictures[subject.image]:
                known.append(Result(shot.name, subject.id, path, old))
            else:
                tasks.append(ScoreTask(shot.name, subject.id, path, recognizer, subject.image, subject.face,
                                       subject.landmarks, count))  # fmt: skip
        for spec in campaign.scorers:
            if again or scores is None or spec.name not in scores.others:
                prompt = str(shot.settings.get("prompt", ""))
                tasks.append(ScoreTask(shot.name, subject.id, path, spec, subject.image, "", None, 0, prompt))
    return _Work(tasks, known, failed, found)


def _keep(target: Target, task: ScoreTask, score: IdentityScore | float) -> None:
    """Adds a score to those of its shot. They are of the video that the sidecar lists."""
    from lynx_parallel.output.scores import ShotScores, read_scores, write_scores

    sidecar = target.output.sidecar(task.name)
    if sidecar is None:
        return
    video = str(sidecar["outputs"]["video"].get("sha256"))
    path = target.output.scores(task.name)
    scores = read_scores(path, video) or ShotScores(video)
    if isinstance(score, float):
        write_scores(path, scores.with_other(task.recognizer.name, score))
    else:
        write_scores(path, scores.with_identity(score))


def in_words(score: IdentityScore) -> str:
    """Returns a score on one line."""
    if score.mean is None or score.worst is None:
        return f"{score.recognizer}: {score.state}"
    drift = "" if score.drift is None else f", drift {score.drift:+.3f}"
    same = "" if score.mean >= score.threshold else ", below its threshold"
    return f"{score.recognizer}: {score.mean:.3f}, worst {score.worst:.3f}, face in {score.with_face:.0%}{drift}{same}"


def summary(results: Sequence[Result]) -> Iterator[str]:
    """Yields lines with the means of each subject and of all, by recogniser."""
    from lynx_parallel.inputs.recognizers import parse_recognizer

    for name in dict.fromkeys(one.score.recognizer for one in results):
        mine = [one for one in results if one.score.recognizer == name]
        scale = mine[0].score
        note = parse_recognizer(name).scale.note
        yield f"{name} ({scale.scale}; the same person from {scale.threshold:g}{'; ' * bool(note)}{note}):"
        subjects = list(dict.fromkeys(one.subject for one in mine))
        for subject in subjects if len(subjects) > 1 else ():
            yield f"  {subject or 'unknown subject'}: {_means([one for one in mine if one.subject == subject])}"
        yield f"  all: {_means(mine)}"


def _means(results: Sequence[Result]) -> str:
    values = [one.score.mean for one in results if one.score.mean is not None]
    without = len(results) - len(values)
    words = [f"{statistics.fmean(values):.3f} over {counted(len(values), 'video')}" if values else "no score"]
    words += [f"{without} without a face"] if without else []
    return ", ".join(words)


def _write_csv(path: Path, results: Sequence[Result]) -> None:
    from lynx_parallel.output.atomic import atomic_write

    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for one in results:
            row: dict[str, Any] = {**asdict(one.score), "name": one.name, "subject": one.subject,
                                   "video": str(one.video), "frames": len(one.score.frames)}  # fmt: skip
            writer.writerow({column: row[column] for column in COLUMNS})
