"""Pictures and embeddings that a caller gives: in memory the same as from a file, and named in errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lynx_parallel.errors import SubjectError
from lynx_parallel.inputs.embedding_file import as_embedding, read_embedding
from lynx_parallel.subject.picture import as_picture, read_picture


def turned() -> Image.Image:
    picture = Image.new("RGB", (40, 20), "black")
    picture.paste("white", (0, 0, 20, 20))
    picture.getexif()[0x0112] = 6  # turn by 90° clockwise to view
    return picture


def transparent() -> Image.Image:
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 0, 0))
    return picture


def grey16() -> Image.Image:
    return Image.fromarray(np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16))


def palette() -> Image.Image:
    return Image.new("RGB", (4, 4), (10, 200, 30)).quantize(4)


@pytest.mark.parametrize("make", [turned, transparent, grey16, palette])
def test_a_picture_in_memory_is_read_as_its_file_is(make: Callable[[], Image.Image], tmp_path: Path) -> None:
    picture = make()
    picture.save(tmp_path / "a.png", exif=picture.getexif())
    expected = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(as_picture(picture, "image"), expected)
    np.testing.assert_array_equal(as_picture(Image.open(tmp_path / "a.png"), "image"), expected)
    np.testing.assert_array_equal(as_picture(str(tmp_path / "a.png"), "image"), expected)
    assert as_picture(expected, "image") is expected


@pytest.mark.parametrize(
    ("picture", "line"),
    [
        (3, "image: of type int: must be a path, a PIL picture or a uint8 RGB array [H, W, 3]"),
        ([1, 2], "image: of type list: must be a path, a PIL picture or a uint8 RGB array [H, W, 3]"),
        (np.zeros((4, 4, 3), np.float32), "image: an array float32 [4, 4, 3]: must be uint8 RGB [H, W, 3]"),
        (np.zeros((4, 4), np.uint8), "image: an array uint8 [4, 4]: must be uint8 RGB [H, W, 3]"),
        (np.zeros((0, 4, 3), np.uint8), "image: an array uint8 [0, 4, 3]: must be uint8 RGB [H, W, 3]"),
        (Image.new("RGB", (0, 4)), "image: 0x4 pixels: must be 1 to 150 million pixels"),
        (Image.new("1", (20_000, 8_000)), "image: 20000x8000 pixels: must be 1 to 150 million pixels"),
        ("no.jpg", "image: no.jpg: cannot be read: No such file or directory"),
    ],
)
def test_what_is_no_picture_is_one_line(picture: Any, line: str) -> None:
    with pytest.raises(SubjectError) as caught:
        as_picture(picture, "image")
    assert str(caught.value) == line


def test_a_cut_file_that_pil_has_opened(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:9000])
    with pytest.raises(SubjectError, match=r"^image: cannot be read: ") as caught:
        as_picture(Image.open(tmp_path / "a.png"), "image")
    assert "\n" not in str(caught.value)


def test_an_embedding_in_memory_is_read_as_its_file_is(tmp_path: Path) -> None:
    vector = np.random.default_rng(1).standard_normal(512)
    np.save(tmp_path / "a.npy", vector)
    expected = read_embedding(tmp_path / "a.npy")
    assert abs(np.linalg.norm(expected) - 1) < 1e-6
    for given in (tmp_path / "a.npy", str(tmp_path / "a.npy"), vector, list(vector), torch.from_numpy(vector)):
        assert as_embedding(given, "embedding").tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("embedding", "line"),
    [
        (np.zeros(512), "embedding: all zero: no face has this embedding"),
        (np.ones((1, 512)), "embedding: shape [1, 512]: [512] floats are needed"),
        ([1, 2], "embedding: dtype int64: [512] floats are needed"),
        ([[1.0], [1.0, 2.0]], "embedding: of type list: [512] floats are needed"),
        (np.full(512, np.nan), "embedding: holds NaN or infinity"),
        (object(), "embedding: dtype object: [512] floats are needed"),
        ("no.npy", "embedding: no.npy: cannot be read: No such file or directory"),
    ],
)
def test_what_is_no_embedding_is_one_line(embedding: Any, line: str) -> None:
    with pytest.raises(SubjectError) as caught:
        as_embedding(embedding, "embedding")
    assert str(caught.value) == line
