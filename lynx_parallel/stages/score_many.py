"""Scores many videos in processes of their own. The calling process imports neither torch nor numpy."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_parallel.errors import LynxError
from lynx_parallel.inputs.manifest import Points
from lynx_parallel.inputs.recognizers import Recognizer
from lynx_parallel.inputs.scorers import ScorerSpec, VideoScorer
from lynx_parallel.output.scores import IdentityScore
from lynx_parallel.text import first_line, in_words

if TYPE_CHECKING:
    from lynx_parallel.stages.score import Scorer


@dataclass(frozen=True)
class ScoreTask:
    """A video to score.

    Attributes:
        name: for lines.
        subject: whose face it shows; empty if unknown.
        recognizer: with its files, or another scorer.
        prompt: text of the video, for another scorer.
        picture, face, landmarks, frames: as in ``Scorer.score``.
    """

    name: str
    subject: str
    video: Path
    recognizer: Recognizer | ScorerSpec
    picture: Path | None
    face: str | int
    landmarks: Points | None
    frames: int
    prompt: str = ""


def score_many(tasks: Iterable[ScoreTask], jobs: int) -> Iterator[tuple[ScoreTask, IdentityScore | float | str]]:
    """Yields each task with its score, or with the reason why there is none, in the order in which they end.

    Args:
        jobs: processes. Each loads a recogniser once.
    """
    with _pool(jobs) as pool:
        futures: dict[Future[IdentityScore | float], ScoreTask] = {pool.submit(_score, task): task for task in tasks}
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except (LynxError, OSError) as error:
                yield futures[future], in_words(error)
            except BrokenProcessPool:
                yield futures[future], "the process that scored it ended"
            except Exception as error:  # another package's scorer may raise anything
                yield futures[future], f"{type(error).__name__}: {first_line(error)}"


@contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Yields a pool that does not wait for its tasks if the block ends early."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_use_one_core)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _use_one_core() -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def _score(task: ScoreTask) -> IdentityScore | float:
    if isinstance(task.recognizer, ScorerSpec):
        return float(_other(task.recognizer).score(task.video, task.prompt, task.picture))
    assert task.picture is not None
    return _scorer(task.recognizer).score(
        task.video, task.picture, face=task.face, landmarks=task.landmarks, frames=task.frames
    )


@cache
def _other(spec: ScorerSpec) -> VideoScorer:
    return spec.load()


@cache
def _scorer(recognizer: Recognizer) -> Scorer:
    from lynx_parallel.stages.score import Scorer

    return Scorer(recognizer)
