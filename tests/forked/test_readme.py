"""Runs the commands of the README and of other pages that are not marked, one after another, in one folder."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from tests.helpers import forked_command
from tests.helpers.documents import DOCUMENTS, TUTORIAL, blocks
from tests.helpers.repository import REPOSITORY

MANIFEST = """\
version: 1
pipeline: demo-tiny
output: renders/spring
subjects:
  ada: {image: faces/astronaut.jpg, vars: {person: woman}}
prompts:
  pumpkin: A {person} carves a pumpkin on a porch in the evening.
"""
FIRST = "README.md"
"""Renders what the commands of other pages look at."""


def test_every_command(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "manifests" / "faces", tmp_path / "faces")
    (tmp_path / "campaign.yaml").write_text(MANIFEST)
    (tmp_path / "summer.yaml").write_text(MANIFEST.replace("renders/spring", "renders/summer"))
    pages = sorted({*DOCUMENTS} - {TUTORIAL}, key=lambda name: (name != FIRST, name))
    commands = [command for name in pages for block in blocks(name) if not block.mark for command in block.commands]
    assert len(commands) >= 15
    for command in commands:
        program, *arguments = shlex.split(command, comments=True)
        assert program == "lynx-render"
        arguments, file = (arguments[:-2], arguments[-1]) if ">" in arguments else (arguments, "")
        # Settings of one command are missing in the next one, which then asks.
        run = forked_command.render(*arguments, cwd=tmp_path, LYNX_YES="1")
        assert run.returncode == 0, f"{command}\n{run.stdout}{run.stderr}"
        if file:
            (tmp_path / file).write_text(run.stdout)
    assert len(list((tmp_path / "renders").rglob("*.mp4"))) >= 5
