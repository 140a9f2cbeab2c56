"""The notebook of the documentation runs from its first to its last cell, without Ray, and is committed unrun."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image, ImageSequence

from lynx_parallel.stages.video import probe
from tests.helpers.documents import all_blocks
from tests.helpers.repository import REPOSITORY

NOTEBOOK = REPOSITORY / "docs" / "notebook.ipynb"
CELL_TIMEOUT_S = 300


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell: NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def test_the_page_about_it_runs(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks of Python run in order, on the demo, with stand-ins for the reader's own scheduler and face models."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    shutil.copy(REPOSITORY / "manifests" / "faces" / "astronaut.jpg", tmp_path / "ada.jpg")
    monkeypatch.chdir(tmp_path)
    points = ((30.0, 30.0), (60.0, 30.0), (45.0, 45.0), (33.0, 60.0), (57.0, 60.0))
    names: dict[str, Any] = {
        "MyScheduler": FlowMatchEulerDiscreteScheduler,
        "my_face_models": lambda image: (points, np.ones(512, np.float32)),
    }
    found = [block for block in all_blocks("docs/notebook.md") if block.kind == "python"]
    assert len(found) == 4
    for block in found:
        code = "\n".join(block.commands).replace('"lynx-full", device="cuda"', '"demo-tiny"')
        exec(compile(code, str(block), "exec"), names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ada.jpg", "beach.webp", "library.mp4", "pumpkin.mp4"]
    assert probe(tmp_path / "library.mp4").codec == "h265"
    assert names["mine"]("A walk", image="ada.jpg", num_inference_steps=1).frames.shape == (9, 48, 64, 3)


def test_it_is_committed_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert len(code_cells(notebook)) >= 5
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(notebook))


def test_it_runs(demo: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(
        nbformat.v4.new_code_cell("import sys\nprint([m for m in ('ray', 'xfuser') if m in sys.modules])")
    )
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=CELL_TIMEOUT_S, kernel_name="python3", resources=resources).execute()
    cells = code_cells(notebook)
    assert printed(cells[-1]) == "[]\n"

    players = [
        output.data["text/html"]
        for cell in cells
        for output in cell.outputs
        if "<video " in output.get("data", {}).get("text/html", "")
    ]
    assert len(players) == 2
    assert all("data:video/mp4;base64," in player for player in players)
    texts = "".join(printed(cell) for cell in cells)
    assert "LynxOutput(9 frames, 64x48, 8 fps, seed 7)" in texts
    assert "LynxOutput(5 frames, 64x48, 8 fps, seed 8)" in texts
    assert "num_frames=80: must be a whole number 4k+1" in texts
    assert "did you mean 'num_inference_steps'?" in texts

    assert sorted(path.name for path in tmp_path.iterdir()) == ["pumpkin.mp4", "pumpkin.webp"]
    info = probe(tmp_path / "pumpkin.mp4")
    assert (info.width, info.height, info.frames, info.fps) == (64, 48, 9, 8)
    with Image.open(tmp_path / "pumpkin.webp") as picture:
        assert sum(1 for _ in ImageSequence.Iterator(picture)) == 9
