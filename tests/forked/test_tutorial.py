"""Runs the blocks of docs/tutorial.md in order, in one folder, and compares what they print with the page."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.helpers.command import PATIENCE_S, environment
from tests.helpers.documents import TUTORIAL, all_blocks
from tests.helpers.fork_server import python
from tests.helpers.repository import REPOSITORY


def lines_of(printed: str) -> list[str]:
    """Returns the lines with a placeholder for each time, which differs from run to run."""
    return [re.sub(r"in \d+ s", "in N s", line) for line in printed.splitlines()]


def test_the_tutorial(demo: Path, tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "manifests", tmp_path / "manifests")
    program = tmp_path / "bin" / "lynx-render"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{python()}" -m tests.helpers.forked_command "$@"\n')
    program.chmod(0o755)
    variables = environment() | {"PATH": f"{program.parent}:{os.environ['PATH']}"}

    folder, printed, compared = tmp_path, "", 0
    for block in all_blocks(TUTORIAL):
        if block.mark.startswith("not run: "):
            continue
        if block.mark.startswith("file: "):
            (folder / block.mark.removeprefix("file: ")).write_text("\n".join(block.commands) + "\n")
        elif block.kind == "sh":
            script = "\n".join([*block.commands, f"pwd > {tmp_path}/folder"])
            run = subprocess.run(
                ["bash", "-eu", "-c", script],
                cwd=folder, env=variables, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
            )  # fmt: skip
            assert run.returncode == 0, f"{block}\n{run.stdout}{run.stderr}"
            folder, printed = Path((tmp_path / "folder").read_text().strip()), run.stdout
        else:
            assert block.kind == "text", f"{block}: neither run nor written to a file"
            missing = [line for line in lines_of("\n".join(block.commands)) if line not in lines_of(printed)]
            assert not missing, f"{block}\n{printed}"
            compared += 1
    assert compared >= 5
    assert folder == tmp_path / "spring"
    assert len([path for path in (folder / "renders").rglob("*.mp4") if ".lynx" not in path.parts]) == 4
