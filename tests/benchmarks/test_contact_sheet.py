"""The contact sheet, of the demo's pipeline on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import is_offline_mode
from PIL import Image

from benchmarks import contact_sheet
from benchmarks.contact_sheet import CAPTION_PX, TILE_PX, sheet


def frames(count: int, height: int, width: int) -> np.ndarray:
    """Grey frames; the n-th has the level 10·n."""
    return np.stack([np.full((height, width, 3), 10 * n, np.uint8) for n in range(count)])


def test_rows_and_columns() -> None:
    made = np.asarray(sheet({"one": frames(9, 48, 64), "two": frames(5, 48, 48)}, columns=3))
    assert made.shape == (2 * CAPTION_PX + 180 + 240, 3 * TILE_PX, 3)
    middle = CAPTION_PX + 90, CAPTION_PX + 180 + CAPTION_PX + 120
    shown = [[made[y, column * TILE_PX + TILE_PX // 2, 0] for column in range(3)] for y in middle]
    assert shown == [[0, 40, 80], [0, 20, 40]]  # first, middle and last frame


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(sys, "argv", ["benchmarks.contact_sheet", *arguments])
    contact_sheet.main()


def test_a_pipeline_is_rendered(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "sheet.png"
    run(monkeypatch, "--pipelines", "demo-tiny", "--frames", "5", "--steps", "1", "--columns", "2", "--out", str(out))
    with Image.open(out) as picture:
        assert picture.size == (2 * TILE_PX, CAPTION_PX + 180)
        assert len(set(picture.convert("L").getdata())) > 20  # a picture, not a blank


def test_weights_that_are_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "--pipelines", "lynx-lite", "--out", str(tmp_path / "sheet.png"))
    assert ended.value.code == 3
    assert is_offline_mode()
    left_out, none = capsys.readouterr().err.splitlines()
    assert left_out.startswith("lynx-lite: left out: ")
    assert none.startswith("no contact sheet: ")
    assert not (tmp_path / "sheet.png").exists()
