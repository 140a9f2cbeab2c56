"""The short storm: each kind of fault at least once. ``make chaos`` is the long one."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.faults import FAULTS
from tests.chaos.storm import storm


def test_every_shot_ends_once(demo: Path, tmp_path: Path) -> None:
    report = storm(tmp_path / "storm", seed=5, faults=len(FAULTS), takes=3, steps=60, pause=(0.5, 2.0))
    print(report)
    assert report.shots == 12
    assert set(FAULTS) - set(report.faults) <= {"a full disk", "Ray's memory monitor"}  # not to be had on every machine
    assert report.ends[-9] >= 1  # twice, where a kind was not to be had
