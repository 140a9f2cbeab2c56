"""Hundreds of damaged pictures and embeddings: each is read, or is refused in one line; nothing hangs or swells."""

from __future__ import annotations

import io
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from lynx_parallel.demo.facepack import ensure_facepack
from lynx_parallel.demo.places import RECOGNISER
from lynx_parallel.errors import SubjectError
from lynx_parallel.inputs.embedding_file import read_embedding
from lynx_parallel.inputs.weight_files import FaceFiles
from lynx_parallel.subject.person import FaceModels, identify_person
from lynx_parallel.subject.picture import read_picture
from tests.helpers.fuzzing import MARKER, Bomb, cuts, flips, join, limited, outcome, split
from tests.helpers.repository import REPOSITORY

FACES = REPOSITORY / "manifests" / "faces"
LANDMARKS = [[20, 20], [40, 20], [30, 32], [22, 42], [38, 42]]


@pytest.fixture(scope="module")
def models(cache: Path) -> FaceModels:
    root = ensure_facepack()
    return FaceModels(FaceFiles(root, root / RECOGNISER, None, 64, True))


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    marker = tmp_path / "executed"
    monkeypatch.setenv(MARKER, str(marker))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on damaged files
        yield
    assert not marker.exists()


def noise(height: int = 48, width: int = 64, channels: int = 3) -> np.ndarray:
    low = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, channels), dtype=np.uint8)
    return low.repeat(8, 0).repeat(8, 1)[:height, :width]


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def formats() -> dict[str, bytes]:
    rgb = Image.fromarray(noise())
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "jpeg": encode(rgb, "JPEG"),
        "progressive jpeg": encode(rgb, "JPEG", progressive=True),
        "jpeg with exif": encode(rgb, "JPEG", exif=exif),
        "cmyk jpeg": encode(rgb.convert("CMYK"), "JPEG"),
        "png": encode(rgb, "PNG"),
        "16-bit png": encode(Image.fromarray(noise()[..., 0].astype(np.uint16) * 257), "PNG"),
        "palette png": encode(rgb.quantize(16), "PNG", transparency=3),
        "webp": encode(rgb, "WEBP"),
        "lossless webp": encode(rgb, "WEBP", lossless=True),
        "gif": encode(rgb.quantize(16), "GIF"),
        "animated gif": encode(
            rgb.quantize(16), "GIF", save_all=True, append_images=[rgb.rotate(90).quantize(16)], transparency=1
        ),
        "tiff": encode(rgb, "TIFF"),
        "lzw tiff": encode(rgb, "TIFF", compression="tiff_lzw"),
        "bmp": encode(rgb, "BMP"),
        "ppm": encode(rgb, "PPM"),
        "tga": encode(rgb, "TGA", compression="tga_rle"),
        "ico": encode(rgb, "ICO", sizes=[(64, 48)]),
    }


FORMATS = formats()


def check(path: Path) -> str | None:
    """What ``read_picture`` ends in; a picture must be one."""

    def read() -> None:
        picture = read_picture(path)
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape[2] == 3
        assert picture.size > 0

    return outcome(read, path, (SubjectError,))


@pytest.mark.parametrize("name", FORMATS)
def test_whole_pictures(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").write_bytes(FORMATS[name])
    assert check(tmp_path / "a") is None


@pytest.mark.parametrize("name", FORMATS)
def test_truncated(tmp_path: Path, name: str) -> None:
    path, content = tmp_path / "a", FORMATS[name]
    for size in cuts(len(content), 12, seed=1):
        path.write_bytes(content[:size])
        line = check(path)
        assert line or size > len(content) // 2, size  # a trailer alone may be missing


@pytest.mark.parametrize("name", FORMATS)
def test_flipped_bits(tmp_path: Path, name: str) -> None:
    path, content = tmp_path / "a", FORMATS[name]
    for part, stop in enumerate((min(64, len(content)), len(content))):
        for changed in flips(content, 0, stop, 15, seed=2 + part):
            path.write_bytes(changed)
            check(path)


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "gif", "tiff", "bmp"])
def test_blocks_overwritten(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(5)
    for filler in (b"\0", b"\xff", None):
        for _ in range(4):
            content, start = bytearray(FORMATS[name]), int(rng.integers(2, len(FORMATS[name]) - 16))
            content[start : start + 16] = rng.bytes(16) if filler is None else filler * 16
            (tmp_path / "a").write_bytes(content)
            check(tmp_path / "a")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, *more: bytes, depth: int = 8, colour: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


ROW = b"\0" + b"\7" * 12  # of a 4 × 4 picture
ZEROS = zlib.compress(bytes(64 << 20), 9)  # 64 kB that unpack to 64 MB
EXIF = b"Exif\0\0"
OTHERS: dict[str, bytes] = {
    "nothing": b"",
    "text": b"I am no picture.\n" * 40,
    "html": b"<!doctype html><title>404</title>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
    "avif that is none": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(200),
    "pickle": pickle.dumps(Bomb()),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\nshowpage\n%%EOF\n",
    "eps of windows": struct.pack("<4sII", b"\xc5\xd0\xd3\xc6", 30, 99) + bytes(18) + b"%!PS-Adobe-3.0 EPSF-3.0\n"
    b"%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n",
    "60000 x 60000": png(60_000, 60_000, b"\0" * 99),
    "2 billion wide": png(2**31 - 1, 1, b"\0" * 99),
    "no width": png(0, 4, b"\0" * 4),
    "no height": png(4, 0, b""),
    "gif of no size": b"GIF89a" + bytes(7) + b",\0\0\0\0\0\0\0\0\0\2\1\0\0;",
    "gif of 65535 x 65535": b"GIF89a" + struct.pack("<HH", 65535, 65535) + FORMATS["gif"][10:],
    "bmp of no size": FORMATS["bmp"][:18] + bytes(8) + FORMATS["bmp"][26:],
    "bmp of negative size": FORMATS["bmp"][:18] + struct.pack("<ii", -64, -48) + FORMATS["bmp"][26:],
    "bmp of 2 billion": FORMATS["bmp"][:18] + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + FORMATS["bmp"][26:],
    "ppm of 10**9": b"P6 1000000000 1000000000 255\n" + bytes(99),
    "ppm of endless digits": b"P6 " + b"9" * 9999,
    "too few rows": png(4, 4, ROW),
    "unknown filter": png(4, 4, b"\x09" + ROW * 4),
    "odd depth": png(4, 4, ROW * 4, depth=5),
    "profile that is none": png(4, 4, ROW * 4, chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile"))),
    "colours in 16 bits": png(4, 4, (b"\0" + b"\1\7" * 12) * 4, depth=16),
    "exif of noise": encode(Image.fromarray(noise()), "JPEG", exif=EXIF + np.random.default_rng(0).bytes(400)),
    "exif of zeros": encode(Image.fromarray(noise()), "JPEG", exif=EXIF + bytes(400)),
    "exif that loops": encode(
        Image.fromarray(noise()), "JPEG",
        exif=EXIF + b"II*\0\x08\0\0\0" + b"\1\0" + struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<I", 8),
    ),
    "exif of a huge count": encode(
        Image.fromarray(noise()), "JPEG",
        exif=EXIF + b"II*\0\x08\0\0\0" + b"\1\0" + struct.pack("<HHII", 0x0112, 3, 2**32 - 1, 2**31) + bytes(4),
    ),
    "exif of an odd orientation": encode(
        Image.fromarray(noise()), "JPEG",
        exif=EXIF + b"II*\0\x08\0\0\0" + b"\1\0" + struct.pack("<HHII", 0x0112, 2, 3, 0x414243) + bytes(4),
    ),
    "exif in a png": png(4, 4, ROW * 4, chunk(b"eXIf", np.random.default_rng(1).bytes(300))),
    "tiff that loops": b"II*\0\x08\0\0\0" + b"\0\0" + struct.pack("<I", 8) + bytes(20),
    "tiff of 10**5 entries": b"II*\0\x08\0\0\0" + b"\xff\xff" + bytes(12) * 65535 + bytes(4),
    "jpeg start alone": b"\xff\xd8\xff\xe0",
    "jpeg markers without end": b"\xff\xd8" + b"\xff\xe0\0\2" * 50_000,
    "jpeg and then text": FORMATS["jpeg"] + b"text" * 999,
}  # fmt: skip
BOMBS: dict[str, bytes] = {
    "iCCP": png(4, 4, ROW * 4, chunk(b"iCCP", b"x\0\0" + ZEROS)),
    "zTXt": png(4, 4, ROW * 4, *[chunk(b"zTXt", b"k%d\0\0" % n + ZEROS) for n in range(16)]),
    "iTXt": png(4, 4, ROW * 4, *[chunk(b"iTXt", b"k%d\0\1\0\0\0" % n + ZEROS) for n in range(16)]),
    "rows without end": png(4, 4, bytes(64 << 20)),
    **{name: OTHERS[name] for name in ("60000 x 60000", "2 billion wide", "gif of 65535 x 65535", "ppm of 10**9")},
    "12000 x 12000 declared": png(12_000, 12_000, b"\0" * 99),
    "tiff of 12000 x 12000": FORMATS["tiff"].replace(struct.pack("<H", 64), struct.pack("<H", 12_000)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.png").write_bytes(OTHERS[name])
    line = check(tmp_path / "a.png")
    fine = ("exif", "profile", "colours", "and then text", "negative", "unknown filter", "too few")
    assert line or any(word in name for word in fine)


def test_eps_is_not_handed_to_an_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gs").write_text(f'#!/bin/sh\nmkdir "${MARKER}"\n')
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for name in ("eps", "eps of windows"):
        (tmp_path / "a.jpg").write_bytes(OTHERS[name])
        assert "EPS" in (check(tmp_path / "a.jpg") or "")


LIMITED = """
import sys
from pathlib import Path
from lynx_parallel.errors import SubjectError
from lynx_parallel.subject.picture import read_picture
for path in map(Path, sys.argv[1:]):
    try:
        assert read_picture(path).size
    except SubjectError as error:
        assert str(error).startswith(f"{path}: ") and len(str(error).splitlines()) == 1, error
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_bombs_take_bounded_memory(tmp_path: Path) -> None:
    for name, content in BOMBS.items():
        (tmp_path / f"{name}.png").write_bytes(content)
    # 150 million pixels in RGB, read and copied: what an honest picture may take too.
    assert int(limited(LIMITED, *sorted(tmp_path.glob("*.png")), megabytes=4000)) < 2000


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [(mode, "png") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    + [(mode, "tiff") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16")],
)
@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (3, 2)])
def test_modes_and_extreme_sizes(tmp_path: Path, mode: str, suffix: str, size: tuple[int, int]) -> None:
    Image.new(mode, size).save(tmp_path / f"a.{suffix}")
    assert read_picture(tmp_path / f"a.{suffix}").shape == (size[1], size[0], 3)


def no_file(path: Path, kind: str) -> None:
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path.name)
        case "dangling":
            path.symlink_to("nowhere")
        case "device":
            path.symlink_to("/dev/zero")
        case "unreadable":
            path.write_bytes(FORMATS["png"])
            path.chmod(0)


@pytest.mark.parametrize(
    "kind",
    ["missing", "folder", "pipe", "loop", "dangling", "device"]
    + [pytest.param("unreadable", marks=pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file"))],
)
def test_what_is_no_file(tmp_path: Path, kind: str) -> None:
    for name in ("a.png", "a.jpg", "a.npy", "a.safetensors"):
        path = tmp_path / name
        no_file(path, kind)
        for read in (read_picture, read_embedding):
            assert outcome(lambda path=path, read=read: read(path), path, (SubjectError,))  # type: ignore[misc]


# Through the demo's face models


def person(path: Path, models: FaceModels, **options: Any) -> str | None:
    def identify() -> None:
        found = identify_person(read_picture(path), where=str(path), models=models, reference_size=256, **options)
        assert np.isfinite(found.embedding).all()
        assert abs(np.linalg.norm(found.embedding) - 1) < 1e-4

    return outcome(identify, "" if options else path, (SubjectError,))


@pytest.mark.parametrize("file", ["astronaut.jpg", "drawn.png"])
def test_damaged_faces(tmp_path: Path, models: FaceModels, file: str) -> None:
    path, content = tmp_path / file, (FACES / file).read_bytes()
    path.write_bytes(content)
    assert person(path, models) is None
    for changed in (
        *(content[:size] for size in cuts(len(content), 4, seed=3)),
        *flips(content, 0, len(content), 12, seed=4),
    ):
        path.write_bytes(changed)
        person(path, models)


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (2, 2), (5, 300), (64, 64)])
def test_sizes_in_which_no_face_is(tmp_path: Path, models: FaceModels, size: tuple[int, int]) -> None:
    for level in (0, 255):
        Image.new("L", size, level).save(tmp_path / "a.png")
        assert "no face found" in (person(tmp_path / "a.png", models) or "")
        person(tmp_path / "a.png", models, landmarks=LANDMARKS)


@pytest.mark.parametrize("name", FORMATS)
def test_odd_pictures_with_given_landmarks(tmp_path: Path, models: FaceModels, name: str) -> None:
    (tmp_path / "a").write_bytes(FORMATS[name])
    assert person(tmp_path / "a", models, landmarks=LANDMARKS) is None
    for wrong in (np.full((5, 2), np.nan), np.zeros((5, 2)), np.zeros((4, 2)), np.full((5, 2), 1e30), [], 3):
        assert person(tmp_path / "a", models, landmarks=wrong)


# Embeddings


def unit(dtype: Any = np.float32) -> np.ndarray:
    vector = np.random.default_rng(1).standard_normal(512)
    return (vector / np.linalg.norm(vector)).astype(dtype)


def npy(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value, **options)
    return buffer.getvalue()


def zipped(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy_header(text: str, body: bytes = bytes(2048)) -> bytes:
    line = text.encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(line)) + line + body


def empty_zip() -> bytes:
    buffer = io.BytesIO()
    zipfile.ZipFile(buffer, "w").close()
    return buffer.getvalue()


def check_embedding(path: Path, content: bytes) -> str | None:
    path.write_bytes(content)

    def read() -> None:
        vector = read_embedding(path)
        assert vector.dtype == np.float32
        assert vector.shape == (512,)
        assert abs(np.linalg.norm(vector.astype(np.float64)) - 1) < 1e-4

    return outcome(read, path, (SubjectError,))


VALUES: dict[str, Callable[[], np.ndarray]] = {
    "NaN": lambda: np.where(np.arange(512) == 7, np.nan, unit()),
    "infinite": lambda: np.where(np.arange(512) == 7, np.inf, unit()),
    "zero": lambda: np.zeros(512),
    "too small": lambda: unit(np.float64) * 1e-300,
    "too large": lambda: unit(np.float64) * 1e300,
    "two rows": lambda: np.stack([unit(), unit()]),
    "one row": lambda: unit()[None],
    "short": lambda: unit()[:511],
    "empty": lambda: np.zeros(0, np.float32),
    "scalar": lambda: np.float32(1).reshape(()),
    "int8": lambda: np.ones(512, np.int8),
    "bool": lambda: np.ones(512, np.bool_),
    "int64": lambda: np.arange(512),
}


@pytest.mark.parametrize("name", VALUES)
def test_embeddings_that_are_none(tmp_path: Path, name: str) -> None:
    value = VALUES[name]()
    assert check_embedding(tmp_path / "a.npy", npy(value))
    assert check_embedding(tmp_path / "a.safetensors", save({"face_embedding": np.ascontiguousarray(value)}))


NPY: dict[str, Callable[[], bytes]] = {
    "object": lambda: npy(np.array([Bomb()], dtype=object), allow_pickle=True),
    "objects": lambda: npy(np.array([Bomb()] * 512, dtype=object), allow_pickle=True),
    "pickle": lambda: pickle.dumps(Bomb()),
    "npz": lambda: zipped(face_embedding=unit()),
    "empty zip": empty_zip,
    "complex": lambda: npy(unit(np.complex64)),
    "text": lambda: npy(np.array(["1.0"] * 512)),
    "dates": lambda: npy(np.zeros(512, "M8[s]")),
    "record": lambda: npy(np.zeros(512, [("line\nbreak", "f4"), ("b", "f4")])),
    "long record": lambda: npy(np.zeros(1, [(f"f{n}", "f4") for n in range(500)])),
    "huge shape": lambda: npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}"),
    "negative shape": lambda: npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-512,)}"),
    "endless header": lambda: npy_header("(" * 9000),
    "header of code": lambda: npy_header(f"__import__('os').mkdir(__import__('os').environ['{MARKER}'])"),
    "wrong descr": lambda: npy_header("{'descr': 'zz', 'fortran_order': False, 'shape': (512,)}"),
    "surplus key": lambda: npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (512,), 'a': 1}"),
    "empty": lambda: b"",
    "version 9": lambda: b"\x93NUMPY\x09\0" + npy(unit())[8:],
}


@pytest.mark.parametrize("name", NPY)
def test_npy_files_that_are_no_embedding(tmp_path: Path, name: str) -> None:
    assert check_embedding(tmp_path / "a.npy", NPY[name]())
    assert check_embedding(tmp_path / "a.safetensors", NPY[name]())


def test_damaged_npy(tmp_path: Path) -> None:
    content = npy(unit())
    assert check_embedding(tmp_path / "a.npy", content) is None
    for size in cuts(len(content), 15, seed=1):
        assert check_embedding(tmp_path / "a.npy", content[:size]), size
    for changed in (*flips(content, 0, 128, 40, seed=2), *flips(content, 128, len(content), 20, seed=3)):
        check_embedding(tmp_path / "a.npy", changed)


def test_damaged_safetensors(tmp_path: Path) -> None:
    path, content = tmp_path / "a.safetensors", save({"face_embedding": unit()})
    assert check_embedding(path, content) is None
    for size in cuts(len(content), 15, seed=1):
        assert check_embedding(path, content[:size]), size
    header = len(content) - 2048
    for changed in (*flips(content, 0, header, 40, seed=2), *flips(content, header, len(content), 20, seed=3)):
        check_embedding(path, changed)
    parsed, body = split(content)
    entry = parsed["face_embedding"]
    for wrong in (
        {"dtype": "BF16", "shape": [1024]}, {"dtype": "BF16", "shape": [512], "data_offsets": [0, 1024]},
        {"dtype": "F8_E4M3", "shape": [2048]}, {"dtype": "I32"}, {"dtype": "X"}, {"shape": [2, 256]}, {"shape": []},
        {"shape": [2**62]}, {"data_offsets": [0, 2**40]}, {"data_offsets": [2048, 0]}, {"data_offsets": [-2048, 0]},
    ):  # fmt: skip
        assert check_embedding(path, join({"face_embedding": {**entry, **wrong}}, body)), wrong
    for key in ("", "Face_Embedding", "line\nbreak", "\x1b[31m", "x" * 100_000):
        assert check_embedding(path, join({key: entry}, body)), key
    for size in (0, 2**31, 2**62, -1):
        assert check_embedding(path, join(parsed, body, size)), size
