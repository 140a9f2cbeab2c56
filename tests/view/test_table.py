"""The table of a benchmark."""

from __future__ import annotations

import csv
import io

import pytest

from lynx_parallel.view.table import ScoredVideo, as_csv, lines, make_table
from tests.helpers.fake_gangs import score_of


def video(subject: str, variant: str, similarity: float | str | None, number: int = 1, **others: float) -> ScoredVideo:
    """A video with a score by dlib; ``-`` is not scored."""
    identity = {} if isinstance(similarity, str) else {"dlib": score_of(similarity)}
    name = f"{subject}/p{number}-{variant}"
    return ScoredVideo(name, subject, f"p{number}", variant, 1, 42, f"{name}.mp4", identity, others)


VIDEOS = [
    video("ada", "full", 0.8, 1, clip=0.3), video("ada", "full", 0.6, 2, clip=0.3), video("ada", "full", None, 3),
    video("bob", "full", 0.5, 1), video("bob", "full", "-", 2), video("cleo", "full", 0.6, 1),
    video("ada", "id-only", 0.5, 1), video("bob", "id-only", 0.4, 1), video("eve", "id-only", 0.9, 1),
]  # fmt: skip


def test_subjects_count_equally_and_gaps_are_no_zeros() -> None:
    table = make_table(VIDEOS, {"clip": "cosine"})
    assert dict(table.columns) == {"dlib": "identity, 1 − Euclidean distance", "clip": "cosine"}
    full = table.rows["full"]["dlib"]
    assert full.mean == pytest.approx((0.7 + 0.5 + 0.6) / 3, abs=1e-4)
    assert (full.subjects, full.videos, full.without_face, full.unscored) == (3, 4, 1, 1)
    assert full.low is not None
    assert full.high is not None
    assert 0.5 <= full.low < full.mean < full.high <= 0.7
    clip = table.rows["full"]["clip"]
    assert (clip.mean, clip.low, clip.subjects, clip.videos, clip.without_face) == (0.3, None, 1, 2, 0)
    assert table.rows["id-only"]["clip"].mean is None


def test_differences_are_of_the_same_subjects() -> None:
    difference = make_table(VIDEOS).differences["id-only"]["dlib"]
    assert difference.mean == pytest.approx((-0.2 - 0.1) / 2, abs=1e-4)  # eve and cleo have no pair
    assert difference.subjects == 2


def test_the_interval_is_the_same_every_time_and_shrinks_with_subjects() -> None:
    few = [video(f"s{n}", "full", 0.5 + 0.1 * (n % 3)) for n in range(6)]
    many = [video(f"s{n}", "full", 0.5 + 0.1 * (n % 3)) for n in range(60)]
    assert make_table(few) == make_table(few)
    widths = [cell.high - cell.low for videos in (few, many) if (cell := make_table(videos).rows["full"]["dlib"])
              and cell.high is not None and cell.low is not None]  # fmt: skip
    assert widths[1] < widths[0] / 2
    assert widths[1] == pytest.approx(2 * 1.96 * 0.0816 / 60**0.5, rel=0.2)  # as the normal distribution gives it


def test_the_text() -> None:
    text = list(lines(make_table(VIDEOS)))
    assert text[0] == "| variant | dlib | clip |"
    assert text[2].startswith("| full | 0.600 [0.500, 0.700] | 0.300 |")
    assert text[3].endswith("| – |")
    assert text[4].startswith("| id-only − full | -0.150 [")
    assert "full, dlib: 4 videos have a score, 1 show no face, 1 are not scored" in text
    assert next(lines(make_table([]))) == "| variant |  |"


def test_a_row_for_each_video() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(VIDEOS, ["dlib", "clip"]))))
    assert len(rows) == len(VIDEOS)
    assert (rows[0]["dlib"], rows[0]["clip"], rows[0]["dlib state"]) == ("0.8", "0.3", "scored")
    assert (rows[2]["dlib"], rows[2]["dlib state"], rows[4]["dlib state"]) == ("", "no face", "")


def test_the_network_of_the_model_is_marked() -> None:
    own = ScoredVideo(
        "a", "ada", "p", "full", 1, 42, "a.mp4", {"arcface_ir_se50": score_of(0.7, "arcface_ir_se50")}, {}
    )
    assert make_table([own]).columns["arcface_ir_se50"].endswith("the network that the model was conditioned on")
