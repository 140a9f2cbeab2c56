"""lynx-render encode: other formats of finished shots."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from lynx_parallel.output.folder import Output
from lynx_parallel.rank.environment import threads_here
from lynx_parallel.stages.video import encode_video, probe
from tests.helpers.campaigns import draw, edit_sidecar, finish, load, tree, write
from tests.helpers.command import started, wait_for
from tests.helpers.finished import ids_of
from tests.helpers.fork_server import fast_children
from tests.helpers.light_command import errors_of, light, refused
from tests.helpers.mp4_boxes import without_mark
from tests.helpers.saved_latents import finish_with_latents
from tests.helpers.webp import read_webp

NAMES = ["ada/run-t01", "ada/walk-t01", "bob/walk-t01"]


@dataclass(frozen=True)
class Made:
    """An output folder ``out``. The shots ``NAMES`` have latents, bob/run-t01 has none.

    Attributes:
        frames: of each shot, as its render decoded them.
    """

    folder: Path
    frames: dict[str, np.ndarray]


@pytest.fixture(scope="module", autouse=True)
def decoders_start_fast() -> Iterator[None]:
    with fast_children():
        yield


@pytest.fixture(scope="module")
def threads() -> Iterator[None]:
    """As many threads as the command's child has: other numbers round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads_here(1))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def first(demo: Path, threads: None, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("first")
    write(folder)
    draw(folder)
    campaign = load(folder)
    frames = {}
    for seed, shot in enumerate(campaign.shots):
        if shot.name in NAMES:
            frames[shot.name] = finish_with_latents(campaign, shot, demo / "wan" / "vae", seed)
        else:
            finish(campaign, shot, kinds=("video",), shot=ids_of(shot))
    output = Output(campaign.output)
    output.private.mkdir()
    output.journal.touch()
    return Made(folder, frames)


@pytest.fixture
def made(first: Made, tmp_path: Path) -> Made:
    """A copy, for a test that changes it."""
    folder = tmp_path / "copy"
    shutil.copytree(first.folder, folder)
    return Made(folder, first.frames)


def png(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.iterdir())])


def test_png_frames_are_those_of_the_render(first: Made, tmp_path: Path) -> None:
    done = light("encode", "out", "--format", "png", "--to", tmp_path / "png", cwd=first.folder)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[0] == ("bob/run-t01: no saved latents: its campaign has no save_latents: true")
    assert done.stdout.splitlines()[-1] == f"{tmp_path}/png: 3 made, 0 already done, 1 failed"
    for name, frames in first.frames.items():
        assert np.array_equal(png(tmp_path / "png" / name), frames)
    before = tree(tmp_path / "png")
    again = light("encode", "out", "--format", "png", "--to", tmp_path / "png", "--json", cwd=first.folder)
    assert json.loads(again.stdout)["done"] == [*sorted(NAMES)]
    assert tree(tmp_path / "png") == before


def test_the_video_of_the_render_byte_for_byte(first: Made, tmp_path: Path) -> None:
    done = light("encode", "out", "--format", "h264", "--only", "ada/*", "--to", tmp_path, cwd=first.folder)
    assert done.returncode == 0, done.stdout
    for name in NAMES[:2]:
        video = Output(first.folder / "out").path(name, "video").read_bytes()  # written without a mark
        assert without_mark((tmp_path / f"{name}.mp4").read_bytes()) == video


def test_other_settings(first: Made, tmp_path: Path) -> None:
    options = ["--only", "ada/walk", "--to", tmp_path, "--name", "{subject}-{prompt}"]
    done = light("encode", "m.yaml", "--format", "h265", "--crf", "30", "--fps", "24", *options, cwd=first.folder)
    assert done.returncode == 0, done.stdout
    info = probe(tmp_path / "ada-walk.mp4")
    assert (info.codec, info.fps, info.frames) == ("h265", 24, 9)
    encode_video(first.frames["ada/walk-t01"], tmp_path / "expected", fps=24, codec="h265", crf=30)
    assert without_mark((tmp_path / "ada-walk.mp4").read_bytes()) == (tmp_path / "expected").read_bytes()
    assert refused("encode", "m.yaml", "--format", "h265", *options, cwd=first.folder) == [
        f"{tmp_path}: 1 file made with another command or other settings, such as ada-walk.mp4; add --replace, or "
        "choose another --to"
    ]
    done = light("encode", "m.yaml", "--format", "h265", "--replace", *options, cwd=first.folder)
    assert done.stdout.splitlines()[-1] == f"{tmp_path}: 1 made, 0 already done"
    assert probe(tmp_path / "ada-walk.mp4").fps == 16


def test_webp_and_posters_beside_the_output_folder(made: Made) -> None:
    only = ["--only", "ada/walk", "m.yaml"]
    assert light("encode", "--format", "webp", "--lossless", *only, cwd=made.folder).returncode == 0
    assert light("encode", "--format", "poster", *only, cwd=made.folder).returncode == 0
    frames, durations = read_webp(made.folder / "out-webp" / "ada" / "walk-t01.webp")
    assert np.array_equal(frames, made.frames["ada/walk-t01"])
    assert sum(durations) == round(9000 / 16)
    with Image.open(made.folder / "out-poster" / "ada" / "walk-t01.jpg") as picture:
        assert picture.size == (64, 48)


def test_what_cannot_be_decoded_is_a_line_and_the_rest_is_made(made: Made) -> None:
    output = Output(made.folder / "out")
    latents = output.path("ada/run-t01", "latents")
    latents.write_bytes(latents.read_bytes()[:-1] + b"\0")
    output.path("ada/walk-t01", "latents").write_bytes(b"cut")
    done = light("encode", "out", "--format", "png", "--json", cwd=made.folder)
    result = json.loads(done.stdout)
    assert (done.returncode, result["made"]) == (1, ["bob/walk-t01"])
    assert result["failed"] == {
        "ada/run-t01": f"{latents}: the latents are damaged: their checksum differs",
        "ada/walk-t01": "its latents are missing or damaged; render again to make them",
        "bob/run-t01": "no saved latents: its campaign has no save_latents: true",
    }
    assert not list((made.folder / "out-png").rglob("*.part"))


def test_another_vae_is_refused(made: Made, demo: Path) -> None:
    vae = shutil.copytree(demo / "wan", made.folder / "moved") / "vae"
    path = Output(made.folder / "out").path("ada/walk-t01", "sidecar")
    model = {"base": str(made.folder / "moved"), "vae_dtype": "float32"}
    edit_sidecar(path, model=model)
    options = ["out", "--format", "poster", "--only", "ada/walk"]
    assert light("encode", *options, cwd=made.folder).returncode == 0
    config = vae / "config.json"
    config.write_text(config.read_text() + "\n")
    done = light("encode", *options, cwd=made.folder)
    assert (done.returncode, done.stdout.splitlines()[0]) == (
        1, f"ada/walk-t01: {config}: not the file that made the video",
    )  # fmt: skip
    shutil.rmtree(made.folder / "moved")
    done = light("encode", *options, cwd=made.folder)
    assert done.stdout.splitlines()[0] == f"ada/walk-t01: {vae}: missing: the VAE that made the video"


def test_tiles_are_decoded_as_the_render_decoded_them(made: Made) -> None:
    """Tiling is a part of what a file is made from; the demo's videos are too small for more than one tile."""
    edit_sidecar(Output(made.folder / "out").path("ada/walk-t01", "sidecar"), exactness={"decode": "tiled"})
    light("encode", "out", "--format", "png", "--only", "ada/*", cwd=made.folder)
    records = {path.stem: json.loads(path.read_text()) for path in (made.folder / "out-png").rglob("ada/*-t01.json")}
    assert {name: record["how"]["tiled"] for name, record in records.items()} == {"run-t01": False, "walk-t01": True}


def test_bad_options(first: Made) -> None:
    assert refused("encode", "out", "--format", "mov", "--device", "tpu", cwd=first.folder) == [
        "--format mov: no such format; formats: h264, h265, webp, png, poster",
        "--device tpu: must be auto, cuda or cpu",
    ]
    if not torch.cuda.is_available():
        done = light("encode", "out", "--format", "png", "--device", "cuda", "--only", "ada/*", cwd=first.folder)
        assert (done.returncode, errors_of(done)) == (3, ["--device cuda: torch finds no CUDA device here"])
        assert not [path for path in (first.folder / "out-png").rglob("*") if path.suffix == ".png"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_stopped_at_work(made: Made, number: int, code: int) -> None:
    """Nothing half-done looks done, the decoding process ends, and the next run makes the rest."""
    arguments = ["encode", "out", "--format", "png", "--only", "*/walk"]
    with started(*arguments, cwd=made.folder, env={**os.environ}) as command:
        parts = made.folder / "out-png" / ".lynx-made" / "parts"
        wait_for(lambda: list(parts.glob("*")), "the first shot")
        wait_for(lambda: decoders(command.pid), "the decoding process")
        [child] = decoders(command.pid)
        command.send_signal(number)
        assert command.wait(60) == code
    wait_for(lambda: not child.is_running(), "the end of the decoding process", within=30)
    left = {path.name for path in (made.folder / "out-png").glob("*")} - {".lynx-made"}
    assert not left
    assert light(*arguments, cwd=made.folder).stdout.splitlines()[-1] == "out-png: 2 made, 0 already done"
    assert np.array_equal(png(made.folder / "out-png" / "ada" / "walk-t01"), made.frames["ada/walk-t01"])


def decoders(pid: int) -> list[psutil.Process]:
    """Returns the decoding processes of a command."""
    found = psutil.Process(pid).children(recursive=True)
    return [process for process in found if "lynx_parallel.rank.decoder" in " ".join(process.cmdline())]


def test_a_decoding_process_that_dies_is_started_again(made: Made) -> None:
    """One shot fails, and the others are made."""
    arguments = ["encode", "out", "--format", "png", "--json"]
    with started(*arguments, cwd=made.folder, env={**os.environ}) as command:
        wait_for(lambda: decoders(command.pid), "the decoding process")
        decoders(command.pid)[0].kill()
        assert command.stdout
        lines = command.stdout.read().splitlines()
        assert command.wait(60) == 1
    result = json.loads(lines[-1])
    assert sorted([*result["made"], *result["failed"]]) == [
        "ada/run-t01",
        "ada/walk-t01",
        "bob/run-t01",
        "bob/walk-t01",
    ]
    assert len(result["made"]) == 2
    [fault] = {fault for name, fault in result["failed"].items() if name != "bob/run-t01"}
    assert fault == ("the decoding process was killed by signal 9 (log: out-png/.lynx-made/logs/decoder-cpu.log)")
