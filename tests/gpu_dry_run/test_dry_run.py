"""The tests of ``tests/gpu`` run on the CPU, so that they do not break before a GPU sees them."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.helpers.dry_run import DRY_RUN
from tests.helpers.fork_server import python
from tests.helpers.repository import REPOSITORY


@pytest.mark.slow
def test_a_dry_run_executes_the_tests() -> None:
    """One recorded case, and all but the campaign through the command line, which ``tests/e2e`` runs on the CPU."""
    chosen = ["tests/gpu", "--ignore=tests/gpu/test_command.py", "-k", "not full_a and not full_b and not mixed_a"]
    made = subprocess.run(
        [python(), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", *chosen],
        cwd=REPOSITORY, env=os.environ | {DRY_RUN: "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout
    assert " passed" in made.stdout
    assert "no CUDA device" not in made.stdout
