"""The table of a benchmark: a row for each variant, a column for each scorer. Imports neither torch nor Ray.

A value is the mean over subjects of each subject's mean over its videos. Its interval says how much it would change
with other people: a bootstrap over subjects. A video without a face has no identity score; it is counted, never taken
for zero.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lynx_parallel.inputs.recognizers import SCALES, RecognizerName
from lynx_parallel.output.folder import Output
from lynx_parallel.output.scores import IdentityScore, ShotScores, read_scores

RESAMPLES = 10_000
"""Resamples of the subjects, with a fixed seed."""


@dataclass(frozen=True)
class ScoredVideo:
    """A finished video with its scores.

    Attributes:
        identity: by recogniser; ``others`` by scorer.
    """

    name: str
    subject: str
    prompt: str
    variant: str
    take: int
    seed: int
    file: str
    identity: Mapping[str, IdentityScore]
    others: Mapping[str, float]

    def value(self, column: str) -> float | None:
        """Returns the value in a column; None without one."""
        if column in self.identity:
            return self.identity[column].mean
        return self.others.get(column)


@dataclass(frozen=True)
class Cell:
    """A value of the table.

    Attributes:
        mean: over subjects; None without any score.
        low, high: bounds of the 95 % interval; None with fewer than two subjects.
        subjects, videos: that have a value.
        without_face: videos in which no face was found.
        unscored: videos without any result.
    """

    mean: float | None
    low: float | None
    high: float | None
    subjects: int
    videos: int
    without_face: int
    unscored: int


@dataclass(frozen=True)
class Table:
    """The table.

    Attributes:
        columns: meaning of each column's values, by name: the recognisers first.
        rows: cells by column, by variant.
        differences: of each further variant from the first, paired by subject.
    """

    columns: Mapping[str, str]
    rows: Mapping[str, Mapping[str, Cell]]
    differences: Mapping[str, Mapping[str, Cell]]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def scored_videos(output: Output) -> list[ScoredVideo]:
    """Returns the finished videos of an output folder, by name, with the scores that are of their current files."""
    found = []
    for name, sidecar in output.sidecars():
        shot, facts = sidecar.get("shot"), sidecar["outputs"].get("video")
        if not isinstance(shot, dict) or not isinstance(facts, dict):
            continue
        scores = read_scores(output.scores(name), str(facts.get("sha256"))) or ShotScores("")
        subject, prompt, variant = (str(shot.get(key, "")) for key in ("subject", "prompt", "variant"))
        take, seed = (int(shot.get(key, 0)) for key in ("take", "seed"))
        found.append(
            ScoredVideo(name, subject, prompt, variant, take, seed, f"{name}.mp4", scores.identity, scores.others)
        )
    return found


def make_table(videos: Sequence[ScoredVideo], scales: Mapping[str, str] = {}) -> Table:
    """Returns the table of some videos.

    Args:
        scales: meaning of the values of other scorers, if known.
    """
    recognizers: list[RecognizerName] = [name for name in SCALES if any(name in video.identity for video in videos)]
    others = sorted({name for video in videos for name in video.others})
    columns: dict[str, str] = {name: _meaning(name) for name in recognizers}
    columns |= {name: scales.get(name, "") for name in others}
    by_variant: dict[str, list[ScoredVideo]] = {}
    for video in videos:
        by_variant.setdefault(video.variant or "all", []).append(video)
    rows = {variant: {column: _cell(own, column) for column in columns} for variant, own in by_variant.items()}
    first, *rest = by_variant.items() or [("", [])]
    differences = {variant: {column: _difference(own, first[1], column) for column in columns} for variant, own in rest}
    return Table(columns, rows, differences)


def _meaning(name: RecognizerName) -> str:
    scale = SCALES[name]
    return f"identity, {scale.meaning}{'; ' * bool(scale.note)}{scale.note}"


def _subject_means(videos: Sequence[ScoredVideo], column: str) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for video in videos:
        if (value := video.value(column)) is not None:
            values.setdefault(video.subject, []).append(value)
    return {subject: statistics.fmean(one) for subject, one in values.items()}


def _cell(videos: Sequence[ScoredVideo], column: str) -> Cell:
    means = _subject_means(videos, column)
    without = sum(column in video.identity and video.value(column) is None for video in videos)
    have = sum(video.value(column) is not None for video in videos)
    return Cell(*_interval(list(means.values())), len(means), have, without, len(videos) - have - without)


def _difference(videos: Sequence[ScoredVideo], other: Sequence[ScoredVideo], column: str) -> Cell:
    """Returns the difference of two variants over the subjects that both have."""
    one, two = _subject_means(videos, column), _subject_means(other, column)
    pairs = [one[subject] - two[subject] for subject in one if subject in two]
    return Cell(*_interval(pairs), len(pairs), 0, 0, 0)


def _interval(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Returns the mean, and the bounds of its 95 % interval by a bootstrap of the values."""
    if not values:
        return None, None, None
    mean = round(statistics.fmean(values), 4)
    if len(values) < 2:
        return mean, None, None
    import numpy as np

    sample = np.asarray(values)
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(sample[drawn].mean(axis=1), [0.025, 0.975])
    return mean, round(float(low), 4), round(float(high), 4)


def lines(table: Table) -> Iterator[str]:
    """Yields the table in Markdown, with notes."""
    yield "| variant | " + " | ".join(table.columns) + " |"
    yield "| --- |" + " --- |" * len(table.columns)
    for variant, cells in table.rows.items():
        yield f"| {variant} | " + " | ".join(_shown(cell) for cell in cells.values()) + " |"
    for variant, cells in table.differences.items():
        first = next(iter(table.rows))
        yield f"| {variant} − {first} | " + " | ".join(_shown(cell, sign="+") for cell in cells.values()) + " |"
    yield ""
    for name, meaning in table.columns.items():
        yield f"{name}: {meaning or 'by another scorer'}"
    counts = [cell for cells in table.rows.values() for cell in cells.values()]
    subjects = max((cell.subjects for cell in counts), default=0)
    yield f"Means over subjects (at most {subjects}), with 95 % intervals by a bootstrap over subjects."
    for variant, cells in table.rows.items():
        for column, cell in cells.items():
            if cell.without_face or cell.unscored:
                yield (
                    f"{variant}, {column}: {cell.videos} videos have a score, {cell.without_face} show no face, "
                    f"{cell.unscored} are not scored"
                )


def _shown(cell: Cell, sign: str = "") -> str:
    if cell.mean is None:
        return "–"
    if cell.low is None or cell.high is None:
        return f"{cell.mean:{sign}.3f}"
    return f"{cell.mean:{sign}.3f} [{cell.low:{sign}.3f}, {cell.high:{sign}.3f}]"


def as_csv(videos: Sequence[ScoredVideo], columns: Sequence[str]) -> str:
    """Returns a CSV file with a row for each video. A video without a face has the state, and no number."""
    written = io.StringIO()
    heads = ["name", "subject", "prompt", "variant", "take", "seed", "file"]
    recognizers = [column for column in columns if column in SCALES]
    details = [f"{name} {what}" for name in recognizers for what in ("state", "worst", "with_face", "drift")]
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([*heads, *columns, *details])
    for video in videos:
        scores = [video.value(column) for column in columns]
        found = [
            None if name not in video.identity else getattr(video.identity[name], what)
            for name in recognizers
            for what in ("state", "worst", "with_face", "drift")
        ]
        writer.writerow([*(getattr(video, head) for head in heads), *scores, *found])
    return written.getvalue()
