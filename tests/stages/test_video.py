"""Videos: what goes in comes out, the same bytes each time, and nothing is left behind by a failure."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lynx_parallel.errors import RenderError
from lynx_parallel.inputs.sampling import MIN_FPS
from lynx_parallel.stages import video as encode
from lynx_parallel.stages.video import VideoInfo, encode_video, probe, read_frames
from tests.helpers.mp4_boxes import Colours, boxes, colours, sample_entry


def moving(frames: int = 9, height: int = 48, width: int = 80) -> np.ndarray:
    """Smooth colours that drift: what a codec keeps well. [F, H, W, 3]"""
    t, y, x = np.mgrid[0:frames, 0:height, 0:width].astype(np.float32)
    waves = [np.sin((x + 3 * t) / 11), np.cos((y - 2 * t) / 7), np.sin((x + y) / 19 + t / 5)]
    return (128 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255**2 / error))


@pytest.mark.parametrize("codec", ["h264", "h265"])
@pytest.mark.parametrize("shape", [(9, 48, 80), (1, 48, 80), (21, 144, 96)])
def test_what_goes_in_comes_out(tmp_path: Path, codec: str, shape: tuple[int, int, int]) -> None:
    frames = moving(*shape)
    path = tmp_path / "ada 100%d: porch.mp4.part"  # no name may mean something to ffmpeg
    encode_video(frames, path, fps=16, codec=codec, crf=14)
    count, height, width = shape
    assert probe(path) == VideoInfo(width, height, count, 16.0, codec, count / 16)
    back = read_frames(path)
    assert back.shape == frames.shape
    assert back.dtype == np.uint8
    assert psnr(back, frames) > 30
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_order_and_timing_of_frames_are_kept(tmp_path: Path, codec: str) -> None:
    frames = np.repeat(np.linspace(20, 230, 25).astype(np.uint8), 48 * 48 * 3).reshape(25, 48, 48, 3)
    encode_video(frames, tmp_path / "a.mp4", fps=24, codec=codec, crf=18)
    assert np.abs(read_frames(tmp_path / "a.mp4").mean((1, 2, 3)) - frames.mean((1, 2, 3))).max() < 2


@pytest.mark.parametrize("codec", ["h264", "h265"])
@pytest.mark.parametrize(
    "fps", [MIN_FPS, 1 / 1999, 0.0007, 0.3, 8, 12.5, 23.976, 24000 / 1001, 29.97, 60, 119.88, 239.9, 240]
)
def test_rates_may_be_fractional_slow_or_fast(tmp_path: Path, fps: float, codec: str) -> None:
    encode_video(moving(9, 16, 16), tmp_path / "a.mp4", fps=fps, codec=codec, crf=23)
    info = probe(tmp_path / "a.mp4")
    assert info.fps == pytest.approx(fps, rel=1e-9)
    assert info.frames == 9


def test_a_long_video_of_a_fast_rate_has_all_its_frames(tmp_path: Path) -> None:
    encode_video(moving(1009, 16, 16), tmp_path / "a.mp4", fps=119.88, codec="h264", crf=40)
    info = probe(tmp_path / "a.mp4")
    assert (info.frames, info.fps) == (1009, pytest.approx(119.88, rel=1e-9))


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_lossless_keeps_every_value(tmp_path: Path, codec: str) -> None:
    """Of the picture as the encoder gets it, yuv420p: RGB has three times as many."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 48, 80, 3), dtype=np.uint8)
    raw = tmp_path / "raw"
    raw.write_bytes(noise.tobytes())
    given = subprocess.run(
        [encode._ffmpeg(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "80x48", "-i", raw,
         "-vf", f"scale=out_color_matrix=bt709:out_range=tv:flags={encode.ACCURATE},format=yuv420p",
         "-f", "rawvideo", "-"],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    kept = {}
    for lossless in (True, False):
        path = tmp_path / "a.mp4"
        encode_video(noise, path, fps=16, codec=codec, crf=1, lossless=lossless)
        kept[lossless] = encode.run_ffmpeg(path, "-f", "rawvideo", "-pix_fmt", "yuv420p", "-") == given
    assert kept == {True: True, False: False}


@pytest.mark.parametrize(("crf", "profile"), [(0, "High 4:4:4 Predictive"), (1, "High"), (51, "High")])
def test_only_crf_0_has_a_profile_that_players_refuse(tmp_path: Path, crf: int, profile: str) -> None:
    encode_video(moving(), tmp_path / "a.mp4", fps=16, codec="h264", crf=crf)
    said = subprocess.run([encode._ffmpeg(), "-i", tmp_path / "a.mp4"], capture_output=True, text=True, check=False)
    assert f"h264 ({profile})" in said.stderr


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_same_frames_give_the_same_bytes(tmp_path: Path, codec: str) -> None:
    frames = moving(33, 96, 160)
    for name in ("a", "b"):
        encode_video(frames, tmp_path / name, fps=16, codec=codec, crf=18)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    # Two runs here tell nothing of another day or machine: no versions, dates or CPU features inside.
    content = (tmp_path / "a").read_bytes()
    assert not [word for word in (b"Lavf", b"Lavc6", b"x265 (build", b"cpuid") if word in content]
    # A view of the frames in another memory order is the same video.
    encode_video(np.asfortranarray(frames), tmp_path / "c", fps=16, codec=codec, crf=18)
    assert (tmp_path / "c").read_bytes() == (tmp_path / "a").read_bytes()


def test_crf_reaches_the_encoder(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    sizes = []
    for crf in (10, 40):
        encode_video(noise, tmp_path / "a.mp4", fps=16, codec="h264", crf=crf)
        sizes.append((tmp_path / "a.mp4").stat().st_size)
    assert sizes[0] > 3 * sizes[1]


@pytest.mark.parametrize(("codec", "tag"), [("h264", b"avc1"), ("h265", b"hvc1")])
def test_file_plays_while_loading_in_the_right_colours(tmp_path: Path, codec: str, tag: bytes) -> None:
    path = tmp_path / "a.mp4"
    colour = np.array([200, 40, 90])
    encode_video(np.full((3, 48, 48, 3), colour, np.uint8), path, fps=16, codec=codec, crf=4)
    content = path.read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat"), "the index comes after the pictures"
    assert tag in content
    said = subprocess.run([encode._ffmpeg(), "-i", path], capture_output=True, text=True, check=False).stderr
    assert "yuv420p(tv, bt709" in said
    luma = encode.run_ffmpeg(path, "-f", "rawvideo", "-pix_fmt", "yuv420p", "-")[: 48 * 48]
    expected = 16 + 219 / 255 * (colour @ [0.2126, 0.7152, 0.0722])  # ITU-R BT.709, 3.2
    assert np.frombuffer(luma, np.uint8).mean() == pytest.approx(expected, abs=1)
    assert np.abs(read_frames(path).astype(int) - colour).max() <= 3


@pytest.mark.parametrize(("codec", "entry", "configuration"), [("h264", "avc1", "avcC"), ("h265", "hvc1", "hvcC")])
@pytest.mark.parametrize("lossless", [False, True])
def test_the_boxes_of_the_file(tmp_path: Path, codec: str, entry: str, configuration: str, lossless: bool) -> None:
    """What Apple's players and browsers look at before they decode a picture."""
    path = tmp_path / "a.mp4"
    encode_video(moving(), path, fps=16, codec=codec, crf=18, lossless=lossless)
    content = path.read_bytes()
    order = [kind for kind, _ in boxes(content)]
    assert order[0] == "ftyp"
    assert order.index("moov") < order.index("mdat"), "faststart: the index comes first"
    kind, described = sample_entry(content)
    assert kind == entry
    assert configuration in described
    assert colours(described["colr"]) == Colours(1, 1, 1, full_range=False)
    said = subprocess.run([encode._ffmpeg(), "-i", path], capture_output=True, text=True, check=False).stderr
    assert re.search(rf"Video: {'hevc' if codec == 'h265' else codec} .*\({entry} .*yuv420p\(tv, bt709", said)


# Failures


def test_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RenderError, match="No such file or directory") as error:
        encode_video(moving(), tmp_path / "no" / "a.mp4", fps=16, codec="h264", crf=18)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (moving().astype(np.float32), "float32"),
        (moving()[0], r"\[48, 80, 3\]"),
        (moving()[:0], r"\[0, 48, 80, 3\]"),
        (moving(2, 47, 80), "even"),
    ],
)
def test_wrong_frames_are_refused(tmp_path: Path, frames: np.ndarray, message: str) -> None:
    with pytest.raises(RenderError, match=message):
        encode_video(frames, tmp_path / "a.mp4", fps=16, codec="h264", crf=18)


def test_unknown_codec_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RenderError, match="'vp9': one of h264, h265"):
        encode_video(moving(), tmp_path / "a.mp4", fps=16, codec="vp9", crf=18)


def fake(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Put a shell script in ffmpeg's place; in it, $out is the file to write."""
    binary = folder / "ffmpeg"
    find = 'for a; do [[ "$a" = file:* ]] && out="${a#file:}"; done'
    binary.write_text(f"#!/bin/bash\n{find}\n{script}\n")
    binary.chmod(0o755)
    monkeypatch.setattr(encode, "_ffmpeg", lambda: str(binary))


BIG = np.zeros((40, 160, 160, 3), np.uint8)  # far more than a pipe holds


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ('echo half > "$out"; echo frame 1 >&2; echo disk full >&2; exit 1', "status 1: frame 1; disk full"),
        ('echo half > "$out"; head -c 1000 > /dev/null; kill -9 $$', "killed by signal 9"),
        ('cat > /dev/null; echo half > "$out"; exit 3', "status 3"),
        ('echo half > "$out"; exit 0', "status 0"),  # content with a part of the frames
        ("cat > /dev/null", "wrote nothing"),
        ("yes | head -c 3000000 >&2; exit 1", "status 1"),  # stderr overflows
    ],
)
def test_a_failing_ffmpeg_leaves_no_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, message: str
) -> None:
    fake(monkeypatch, tmp_path, script)
    with pytest.raises(RenderError, match=message) as error:
        encode_video(BIG, tmp_path / "a.mp4.part", fps=16, codec="h264", crf=18)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    assert not (tmp_path / "a.mp4.part").exists()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_an_interrupt_kills_ffmpeg_and_removes_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(monkeypatch, tmp_path, f'echo half > "$out"; echo $$ > {tmp_path}/pid; exec sleep 60')

    def interrupt(*_: object) -> None:
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3, 0.1)
    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            encode_video(BIG, tmp_path / "a.mp4.part", fps=16, codec="h264", crf=18)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - start < 50
    assert gone(int((tmp_path / "pid").read_text()))
    assert not (tmp_path / "a.mp4.part").exists()


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    encode_video(moving(33), tmp_path / "whole.mp4", fps=16, codec="h264", crf=10)
    whole = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    for name in ("cut.mp4", "empty.mp4", "text.mp4", "missing.mp4"):
        for reader in (probe, read_frames):
            with pytest.raises(RenderError, match=name) as error:
                reader(tmp_path / name)
            assert "\n" not in str(error.value)


def test_importing_it_imports_no_torch() -> None:
    code = (
        "import sys; import lynx_parallel.stages.video, lynx_parallel.subject.picture;"
        "print([m for m in ('torch', 'ray', 'cv2', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
