"""The driver process of a whole run imports no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.helpers.command import PATIENCE_S, environment
from tests.helpers.demo_output import NAMES, digests

# Runs the command as ``lynx-render`` does. At the end it writes which heavy packages were imported.
PROGRAM = """\
import atexit, json, runpy, sys
heavy = ("torch", "diffusers", "transformers", "xfuser", "insightface", "cv2")
atexit.register(lambda: open("imported.json", "w").write(json.dumps([m for m in heavy if m in sys.modules])))
runpy.run_module("lynx_parallel.cli.__main__", run_name="__main__", alter_sys=True)
"""


def test_the_driver_imports_no_torch(campaign: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(campaign), "--ulysses", "2"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert digests(tmp_path / "renders" / "demo", ".mp4").keys() == NAMES
    assert json.loads((tmp_path / "imported.json").read_text()) == []
