"""The short storm, with gangs of one rank: each kind of fault at least once.

Ray's memory monitor is left out, because it sees other tests' memory. ``make chaos`` is the long storm, with all faults
and gangs of two ranks.
"""

from __future__ import annotations

from pathlib import Path

from tests.chaos.faults import FAULTS, MEMORY_MONITOR
from tests.chaos.storm import storm


def test_every_shot_ends_once(demo: Path, tmp_path: Path) -> None:
    faults = len(FAULTS) - 1
    report = storm(tmp_path / "storm", seed=5, faults=faults, takes=2, steps=40, pause=(0.3, 1.0), alone=False, ranks=1)
    print(report)
    assert report.shots == 8
    assert set(FAULTS) - set(report.faults) <= {
        MEMORY_MONITOR,
        "a full disk",
    }  # a small one cannot be mounted everywhere
    assert report.ends[-9] >= 1  # twice, where a kind was not to be had
