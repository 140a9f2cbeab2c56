"""Marks in MP4 files, read by our own code, by a walk through the boxes, and by exiftool."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_parallel.output.marks import TRAINED, XMP_BOX, Mark, add_mark, mark_of, read_mark, xmp_packet
from lynx_parallel.stages.video import encode_video, read_frames
from tests.helpers.mp4_boxes import boxes, without_mark

DIGEST = "0123456789abcdef" * 4
MINIMAL = Mark(DIGEST)
FULL = Mark(DIGEST, 'A <b>man</b> & a "dog"\u2028 walk\x00 — ☕ 人', 2**62)
READ_FULL = Mark(DIGEST, 'A <b>man</b> & a "dog"\u2028 walk? — ☕ 人', 2**62)

needs_exiftool = pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")


@pytest.fixture(params=["h264", "h265"])
def video(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    frames = np.random.default_rng(0).integers(0, 255, (5, 32, 48, 3), np.uint8)
    encode_video(frames, tmp_path / "video.mp4", fps=8, codec=request.param, crf=18)
    return tmp_path / "video.mp4"


@pytest.mark.parametrize(("mark", "read"), [(MINIMAL, MINIMAL), (FULL, READ_FULL), (Mark(""), Mark(""))])
def test_what_is_written_is_read(video: Path, mark: Mark, read: Mark) -> None:
    before, frames = video.read_bytes(), read_frames(video)
    assert read_mark(video) is None
    add_mark(video, mark)
    assert read_mark(video) == read
    assert video.read_bytes().startswith(before)  # no box has moved, so no offset is wrong
    assert without_mark(video.read_bytes()) == before
    assert np.array_equal(read_frames(video), frames)
    kinds = [kind for kind, _ in boxes(video.read_bytes())]
    assert kinds.index("moov") < kinds.index("mdat") < kinds.index("uuid") == len(kinds) - 1
    _, content = list(boxes(video.read_bytes()))[-1]
    assert content == XMP_BOX + xmp_packet(mark)


@needs_exiftool
@pytest.mark.parametrize("mark", [MINIMAL, FULL])
def test_exiftool_reads_the_mark(video: Path, mark: Mark) -> None:
    add_mark(video, mark)
    printed = subprocess.run(
        ["exiftool", "-json", "-G1", "-n", str(video)], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, Any] = json.loads(printed)[0]
    assert found["XMP-iptcExt:DigitalSourceType"] == TRAINED
    assert found["XMP-dc:Identifier"] == f"sha256:{DIGEST}"
    assert found.get("XMP-dc:Description") == (READ_FULL.prompt if mark is FULL else None)
    assert "Warning" not in "".join(found)


@needs_exiftool
def test_exiftool_reads_the_mark_of_pictures(tmp_path: Path) -> None:
    from lynx_parallel.inputs.formats import read_format
    from lynx_parallel.stages.formats import write_format

    frames = np.zeros((2, 32, 48, 3), np.uint8)
    for name, path in (("webp", "a.webp"), ("poster", "a.jpg"), ("png", "frames")):
        form = read_format(name, fps=None, crf=None, quality=None, lossless=False)
        write_format(frames, tmp_path / path, form, fps=8, mark=MINIMAL)
    files = [tmp_path / "a.webp", tmp_path / "a.jpg", tmp_path / "frames" / "0001.png"]
    printed = subprocess.run(
        ["exiftool", "-json", "-n", "-DigitalSourceType", *map(str, files)], capture_output=True, text=True, check=True
    ).stdout
    assert [one["DigitalSourceType"] for one in json.loads(printed)] == [TRAINED] * 3


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"text", b"\0\0\0\x08uuid", b"\xff" * 64])
def test_other_files_have_no_mark(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(content)
    assert read_mark(path) is None


@pytest.mark.parametrize("packet", [b"", b"<a", b"\xff\xfe", b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", b"<a/>"])
def test_other_packets_are_no_marks(tmp_path: Path, packet: bytes) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes((24 + len(packet)).to_bytes(4, "big") + b"uuid" + XMP_BOX + packet)
    assert read_mark(path) is None


@given(st.text(), st.integers(0, 2**63 - 1))
def test_any_prompt_survives(tmp_path_factory: pytest.TempPathFactory, prompt: str, seed: int) -> None:
    path = tmp_path_factory.getbasetemp() / "any.mp4"
    path.write_bytes(b"")
    add_mark(path, Mark(DIGEST, prompt, seed))
    found = read_mark(path)
    assert found is not None
    assert (found.digest, found.seed) == (DIGEST, seed)
    lines = prompt.replace("\r\n", "\n").replace("\r", "\n")
    expected = "".join(c if c in "\t\n" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff" else "?"
                       for c in lines)  # fmt: skip
    assert (found.prompt or "") == expected


def test_the_mark_of_a_sidecar() -> None:
    sidecar = {"digests": {"video": DIGEST}, "settings": {"prompt": "A walk", "sampling.seed": 7}, "encoding": {}}
    assert mark_of(sidecar) == MINIMAL
    assert mark_of({**sidecar, "encoding": {"video.metadata": "full"}}) == Mark(DIGEST, "A walk", 7)
