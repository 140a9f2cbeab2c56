"""Pictures, crops and embeddings, against the recordings and against odd files."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from lynx_parallel.errors import SubjectError
from lynx_parallel.inputs.embedding_file import read_embedding
from lynx_parallel.subject import picture as subject
from lynx_parallel.subject.picture import check_inside, id_crop, read_picture, ref_crop, similarity
from tests.helpers.golden_cases import GOLDEN, case_names, requires_golden

FACE = np.array([[70, 80], [120, 76], [96, 108], [76, 132], [118, 129]], dtype=np.float32)


def noise(height: int = 160, width: int = 200) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def one_line(error: pytest.ExceptionInfo[SubjectError], path: Path) -> bool:
    return str(path) in str(error.value) and "\n" not in str(error.value)


# Crops


@requires_golden
@pytest.mark.parametrize("name", case_names())
def test_crops_equal_the_recorded_ones(name: str) -> None:
    folder = GOLDEN / "cases" / name
    picture = read_picture(folder / "subject.png")
    landmarks = load_file(folder / "expected.safetensors")["landmarks"]
    for crop, recorded in (
        (ref_crop(picture, landmarks), "aligned_face.png"),
        (id_crop(picture, landmarks), "id_crop.png"),
    ):
        difference = np.abs(crop.astype(int) - read_picture(folder / recorded))
        # One level, at few pixels: LAPACK and OpenCV builds differ in the last bit of a coordinate.
        assert difference.max() <= 1
        assert difference.mean() < 1e-3


def test_ref_crop_puts_the_points_on_the_lowered_template() -> None:
    # A face that already lies on the crop's template is not moved: 256 = 2 · 128, moved right by 16.
    template = ((subject.ARCFACE_TEMPLATE + [0, 10] - 56) * 0.8 + 56) * 2 + [16, 0]
    picture = noise(256, 256)
    np.testing.assert_array_equal(ref_crop(picture, template), picture)
    np.testing.assert_array_equal(id_crop(picture, subject.ARCFACE_TEMPLATE), picture[:112, :112])


def test_crops_are_black_beyond_the_picture() -> None:
    crop = ref_crop(np.full((160, 200, 3), 200, np.uint8), FACE)
    assert (crop[0, 0] == 0).all()
    assert (crop[128, 128] == 200).all()
    assert crop.shape == (256, 256, 3)
    assert crop.dtype == np.uint8


def test_crop_takes_a_view_and_leaves_the_picture_alone() -> None:
    picture = noise()
    before = picture.copy()
    mirrored = picture[:, ::-1]
    np.testing.assert_array_equal(id_crop(mirrored, FACE), id_crop(mirrored.copy(), FACE))
    np.testing.assert_array_equal(picture, before)


def test_similarity_recovers_rotation_scale_and_shift_without_mirroring() -> None:
    angle, scale, shift = 0.4, 1.7, np.array([12.0, -5.0])
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    found = similarity(FACE.astype(np.float64), FACE @ matrix.T + shift)
    np.testing.assert_allclose(found, np.column_stack([matrix, shift]), atol=1e-9)
    assert np.linalg.det(similarity(FACE, FACE * np.float32([-1, 1]))[:, :2]) > 0


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        (FACE[:4], "shape"),
        ("five", "not numbers"),
        ([[1, 2], [3]], "not numbers"),
        (np.where(FACE == 80, np.nan, FACE), "not finite"),
        ([[50, 50]] * 5, "one line"),
        ([[x, 2 * x] for x in (10, 20, 30, 40, 50)], "one line"),
    ],
)
def test_unusable_landmarks_are_one_line(landmarks: object, message: str) -> None:
    for crop in (ref_crop, id_crop):
        with pytest.raises(SubjectError, match=message):
            crop(noise(), landmarks)


@pytest.mark.parametrize("shift", [[100, 0], [-75, 0], [0, -80], [0, 60]])
def test_points_outside_the_picture_are_cropped_and_refused_only_where_written_by_hand(shift: list[float]) -> None:
    """The pixels of a cut-off face are those of the same face in a larger picture, and black beyond the edge."""
    points, room = FACE + np.float32(shift), 200
    larger = np.pad(noise(), ((room, room), (room, room), (0, 0)))
    for crop in (ref_crop, id_crop):
        difference = np.abs(crop(noise(), points).astype(int) - crop(larger, points + room))
        assert np.mean(difference > 1) < 0.02  # larger numbers round otherwise: a shift of less than 1/32 pixel
    with pytest.raises(SubjectError, match=r"^landmarks: \[.*\] lies outside the 200x160 picture: give pixels of the"):
        check_inside(points, 200, 160)


def test_a_point_on_the_edge_is_inside() -> None:
    points = FACE.copy()
    points[0], points[4] = [0, 0], [200, 160]
    np.testing.assert_array_equal(check_inside(points, 200, 160), points)


# Pictures


def test_png_comes_back_exactly(tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), noise())


def test_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").tolist() == [[[1, 2, 3]]]


def test_grey_of_8_and_16_bits(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    for name in ("8.png", "16.png"):
        np.testing.assert_array_equal(read_picture(tmp_path / name), np.repeat(grey[:, :, None], 3, 2))
    Image.fromarray(np.full((2, 2), 200, np.uint16)).save(tmp_path / "dark.png")  # of 65535: nearly black
    assert (read_picture(tmp_path / "dark.png") == 1).all()


def test_palette_and_alpha_lie_over_white(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (10, 200, 30)).quantize(4).save(tmp_path / "palette.png")
    assert np.abs(read_picture(tmp_path / "palette.png").astype(int) - (10, 200, 30)).max() <= 1
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    rgba.save(tmp_path / "alpha.png")
    assert read_picture(tmp_path / "alpha.png").tolist() == [[[255, 0, 0], [255, 255, 255]]]
    paletted = Image.new("P", (2, 1), 0)
    paletted.putpalette([9, 9, 9, 0, 0, 0])
    paletted.putpixel((1, 0), 1)
    paletted.save(tmp_path / "both.png", transparency=1)
    assert read_picture(tmp_path / "both.png").tolist() == [[[9, 9, 9], [255, 255, 255]]]


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (200, 40, 40)).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    red, green, blue = read_picture(tmp_path / "a.jpg")[4, 4].astype(int)
    assert red > 150 > 90 > max(green, blue)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 20), "black")
    picture.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to view
    picture.save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright = read_picture(tmp_path / "a.jpg")
    assert upright.shape == (40, 20, 3)
    assert upright[5].mean() > 240
    assert upright[35].mean() < 15


def test_missing_file_names_it_once(tmp_path: Path) -> None:
    with pytest.raises(SubjectError) as error:
        read_picture(tmp_path / "ada.jpg")
    assert str(error.value) == f"{tmp_path / 'ada.jpg'}: cannot be read: No such file or directory"


def test_unreadable_files_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("I am not a picture.\n" * 9)
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    for suffix in ("png", "jpg", "webp", "gif", "bmp", "tiff"):
        whole = tmp_path / f"whole.{suffix}"
        Image.fromarray(noise()).save(whole)
        (tmp_path / f"cut.{suffix}").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        whole.unlink()
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "float.tiff")
    for path in tmp_path.iterdir():
        with pytest.raises(SubjectError) as error:
            read_picture(path)
        assert one_line(error, path), error.value


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [13_000, 15_000, 60_000])
def test_decompression_bomb_is_one_line(tmp_path: Path, side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))
    (tmp_path / "bomb.png").write_bytes(bomb + chunk(b"IEND", b""))
    with pytest.raises(SubjectError, match="million") as error:
        read_picture(tmp_path / "bomb.png")
    assert one_line(error, tmp_path / "bomb.png")


def test_a_large_honest_picture_is_read_quietly(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    Image.new("L", (10_000, 10_000), 7).save(tmp_path / "large.png")  # above Pillow's own warning
    assert read_picture(tmp_path / "large.png").shape == (10_000, 10_000, 3)
    assert not recwarn.list


# Embeddings


def unit() -> np.ndarray:
    vector = np.random.default_rng(1).standard_normal(512)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def test_embedding_of_length_one_comes_back_bit_for_bit(tmp_path: Path) -> None:
    nearly = unit() * np.float32(1 + 5e-6)
    save_file({"face_embedding": nearly, "other": nearly}, tmp_path / "a.safetensors")
    np.save(tmp_path / "a.npy", nearly)
    for name in ("a.safetensors", "a.npy"):
        assert read_embedding(tmp_path / name).tobytes() == nearly.tobytes()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_other_lengths_are_normalised(tmp_path: Path, dtype: type) -> None:
    np.save(tmp_path / "a.npy", (unit() * 21.5).astype(dtype))
    read = read_embedding(tmp_path / "a.npy")
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, unit(), atol=1e-3 if dtype is np.float16 else 1e-7)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(512, np.float32), "all zero"),
        (np.full(512, np.nan, np.float32), "NaN"),
        (np.full(512, np.inf, np.float32), "infinity"),
        (np.ones((1, 512), np.float32), r"shape \[1, 512\]: \[512\] floats"),
        (np.ones(128, np.float32), r"shape \[128\]"),
        (np.ones(512, np.int64), "int64"),
    ],
)
def test_wrong_embeddings_are_one_line(tmp_path: Path, value: np.ndarray, message: str) -> None:
    save_file({"face_embedding": value}, tmp_path / "a.safetensors")
    np.save(tmp_path / "a.npy", value)
    for name in ("a.safetensors", "a.npy"):
        with pytest.raises(SubjectError, match=message) as error:
            read_embedding(tmp_path / name)
        assert one_line(error, tmp_path / name)


def test_pickles_other_keys_and_other_files_are_refused(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "executed.npy",)

    np.save(tmp_path / "pickle.npy", np.array([Touch()], dtype=object), allow_pickle=True)
    save_file({"embedding": unit()}, tmp_path / "key.safetensors")
    save_file({}, tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no")
    (tmp_path / "text.npy").write_text("no")
    (tmp_path / "a.pt").touch()
    for path in [*tmp_path.iterdir(), tmp_path / "missing.npy", tmp_path / "missing.safetensors"]:
        with pytest.raises(SubjectError) as error:
            read_embedding(path)
        assert one_line(error, path), error.value
    assert not (tmp_path / "executed.npy").exists()
    with pytest.raises(SubjectError, match="no key face_embedding, but embedding"):
        read_embedding(tmp_path / "key.safetensors")
