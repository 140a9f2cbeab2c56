"""lynx-render report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lynx_parallel.output.folder import Output
from tests.helpers.campaigns import MANIFEST, draw, finish, load, write
from tests.helpers.light_command import errors_of, light
from tests.helpers.reports import data_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, MANIFEST)
    draw(tmp_path)
    campaign = load(tmp_path)
    output = Output(campaign.output)
    for shot in campaign.shots:
        finish(campaign, shot)
        output.poster(shot.name).parent.mkdir(parents=True, exist_ok=True)
        output.poster(shot.name).write_bytes(b"jpg")
    output.private.mkdir()
    return tmp_path


def test_a_page_beside_its_posters(folder: Path) -> None:
    done = light("report", "m.yaml", cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "out/report.html\n", "")
    assert data_of(folder / "out" / "report.html")["counts"] == {"done": 4}
    verified = json.loads(light("verify", "m.yaml", "--json", cwd=folder).stdout)
    assert verified["findings"] == [], "the page and its posters are no foreign files"


def test_one_file_elsewhere(folder: Path) -> None:
    refused = light("report", "m.yaml", "--out", "page.html", cwd=folder)
    assert refused.returncode == 2
    assert refused.stderr.startswith("--out: the page names its posters relative to the output folder: add --inline")
    done = light("report", "m.yaml", "--inline", "--client", "--out", "page.html", cwd=folder)
    assert (done.returncode, done.stdout) == (0, "page.html\n")
    data = data_of(folder / "page.html")
    assert data["client"] is True
    assert data["shots"][0]["poster"].startswith("data:image/jpeg;base64,")
    assert not (folder / "out" / "report.html").exists()


def test_a_folder_that_is_not_an_output_folder(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    done = light("report", "plain", cwd=tmp_path)
    assert done.returncode == 2
    assert errors_of(done) == ["plain: not an output folder: it holds neither .lynx nor a sidecar"]
    assert not list((tmp_path / "plain").iterdir())


def test_posters_are_made_of_videos_that_have_none(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    from lynx_parallel.stages.video import encode_video

    output, name = Output(folder / "out"), "ada/walk-t01"
    frames = np.zeros((9, 48, 64, 3), np.uint8)
    frames[:, :, :32] = np.linspace(0, 250, 9).astype(np.uint8)[:, None, None, None]
    encode_video(frames, output.path(name, "video"), fps=8, codec="h264", crf=18)
    output.poster(name).unlink()
    output.poster("ada/run-t01").unlink()  # its video is no video
    done = light("report", "m.yaml", cwd=folder, allowed="numpy")
    assert done.returncode == 0
    assert done.stderr.splitlines()[0] == "making 2 posters from the videos"
    assert done.stderr.splitlines()[1].startswith("ada/run-t01: no poster: ")
    strip = np.asarray(Image.open(output.poster(name)).convert("L"))
    assert strip.shape == (48, 8 * 64)
    levels = [int(strip[24, 64 * place + 16]) for place in range(8)]
    assert levels == sorted(levels)
    assert levels[-1] - levels[0] > 150
    assert strip[24, 48] < 10
