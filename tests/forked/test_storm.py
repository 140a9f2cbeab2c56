"""The short storm, whose drivers and ranks are forks: each kind of fault at least once.

Ray's memory monitor is left out, because there is no Ray. ``make chaos`` is the long storm, with Ray and all faults.
With this seed, the driver is killed last, after the disk was full. The next driver does not wait 2 minutes for a retry.
The faults end long before the shots do, so that all are made on a fast machine as well.
"""

from __future__ import annotations

from pathlib import Path

from tests.chaos.faults import FAULTS, MEMORY_MONITOR
from tests.chaos.storm import storm
from tests.helpers.forked_command import start


def test_every_shot_ends_once(demo: Path, tmp_path: Path) -> None:
    report = storm(
        tmp_path / "storm",
        seed=168,
        faults=len(FAULTS) - 1,
        takes=2,
        steps=18,
        pause=(0.3, 1.0),
        alone=False,
        start=start,
    )
    print(report)
    assert report.shots == 8
    # A small disk cannot be mounted everywhere. Another fault is then made twice.
    assert set(FAULTS) - set(report.faults) <= {MEMORY_MONITOR, "a full disk"}
    assert report.ends[-9] >= 1
