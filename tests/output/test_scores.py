"""Scores in files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lynx_parallel.output.scores import (
    FrameScore,
    IdentityScore,
    ShotScores,
    read_scores,
    remove_scores,
    write_scores,
)

SCORE = IdentityScore(
    "dlib", "1 − Euclidean distance", 0.4, "scored", 0.7, 0.6, 0.5, -0.1, "r" * 64, "dlib 20",
    (FrameScore(0, 0.0, 0.8, 1, 0.3, 1.0, 2.0, 3.0), FrameScore(5, 0.5)),
)  # fmt: skip
SCORES = ShotScores("v" * 64, {"dlib": SCORE}, {"clip": 0.31})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x.json"
    write_scores(path, SCORES)
    assert read_scores(path) == SCORES
    assert read_scores(path, "v" * 64) == SCORES
    assert read_scores(path, "w" * 64) is None
    remove_scores(path)
    remove_scores(path)
    assert read_scores(path) is None


def test_one_more_recogniser() -> None:
    other = IdentityScore("sface", "cosine similarity", 0.363, "no face")
    assert SCORES.with_identity(other) == ShotScores("v" * 64, {"dlib": SCORE, "sface": other}, {"clip": 0.31})


def test_keys_of_later_versions_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_scores(path, SCORES)
    found = json.loads(path.read_text())
    found["identity"]["dlib"]["later"] = found["identity"]["dlib"]["frames"][0]["later"] = 1
    path.write_text(json.dumps({**found, "later": 1}))
    assert read_scores(path) == SCORES


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "video": "v", "identity": {"dlib": 3}, "others": {}}']
)
def test_other_files(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    assert read_scores(path) is None
