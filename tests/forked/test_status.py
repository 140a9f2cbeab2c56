"""The status of a run that is at work or was killed, and a run of the sample alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.helpers import forked_command
from tests.helpers.command import ONE_RANK, wait_for
from tests.helpers.light_command import light
from tests.helpers.reports import data_of


def test_status_of_a_run_that_another_process_renders(campaign: Path, tmp_path: Path) -> None:
    """Seen while it is at work, and after it was killed."""
    slow = ("--set", "sampling.num_inference_steps=400", "--only", "drawn/beach", *ONE_RANK)

    def look() -> dict[str, Any]:
        done = light("status", campaign, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    with forked_command.started(campaign, *slow, cwd=tmp_path) as driver:

        def denoising() -> bool:
            run = look()["run"]
            return bool(run and run["gangs"] and run["gangs"][0]["stage"] == "denoising" and run["gangs"][0]["step"])

        wait_for(denoising, "a step")
        seen = look()
        assert seen["alive"] is True
        assert f"process {driver.pid} on " in seen["driver"]
        counts = seen["counts"]
        assert sum(counts.values()) == counts["left"] == 4
        driver.kill()
    after = look()
    assert after["alive"] is False
    assert after["run"]["exit_code"] is None


def test_sample_only_leaves_the_rest(tmp_path: Path) -> None:
    output = tmp_path / "out"
    run = forked_command.render("demo", "--set", f"output={output}", "--sample-only", "1", "--quiet", cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 rendered" in run.stdout
    assert "3 left" in run.stdout
    assert "step" not in run.stdout
    counts = data_of(output / "report.html")["counts"]
    assert counts == {"done": 1, "to render": 3}
