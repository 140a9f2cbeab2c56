"""The look at a picture before anything is rendered: its format and size, no pixel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from lynx_parallel.errors import SubjectError
from lynx_parallel.inputs.picture_file import HeicUnreadable, picture_mistake
from lynx_parallel.subject.picture import read_picture

HEIC_START = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf"


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without pillow-heif; another test may have registered it."""
    Image.init()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])


def write_heic(path: Path) -> Path:
    """A picture as phones make it, 64 × 48, red."""
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.new("RGB", (64, 48), (200, 30, 30))).save(path)
    return path


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp", "a.tif", "a.avif"])
def test_pictures_that_are_read(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (64, 48), "red").save(tmp_path / name)
    assert picture_mistake(tmp_path / name) is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a picture"),
        (b"no picture", "not a picture"),
        (b"%PDF-1.7", "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read|not a picture"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "cannot be read|not a picture"),
        (b"\0\0\0\x1cftypqt  \0\0\0\0", "not a picture"),
    ],
)
def test_pictures_that_are_not(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    error = picture_mistake(path)
    assert isinstance(error, SubjectError)
    assert not isinstance(error, HeicUnreadable)
    with pytest.raises(SubjectError, match=rf"^{path}: ({said})") as caught:
        raise error
    assert "\n" not in str(caught.value)


def test_a_picture_that_is_missing_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    assert str(picture_mistake(path)) == f"{path}: cannot be read: No such file or directory"
    Image.new("1", (100, 100)).save(path)
    monkeypatch.setattr("lynx_parallel.inputs.picture_file.MAX_PIXELS", 9_999)
    assert str(picture_mistake(path)).startswith(f"{path}: 100x100 pixels: at most ")


def test_pixels_are_not_decoded(tmp_path: Path) -> None:
    """Damage behind the header is found when the picture is used."""
    Image.effect_noise((256, 256), 100).convert("RGB").save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    assert picture_mistake(tmp_path / "cut.png") is None
    with pytest.raises(SubjectError, match="cannot be read"):
        read_picture(tmp_path / "cut.png")


def test_heic_is_read(tmp_path: Path) -> None:
    path = write_heic(tmp_path / "a.heic")
    assert picture_mistake(path) is None
    picture = read_picture(path)
    assert picture.shape == (48, 64, 3)
    assert abs(picture.astype(int) - [200, 30, 30]).max() < 12
    (tmp_path / "IMG_1.JPG").write_bytes(path.read_bytes())  # phones and mail programs rename
    assert (read_picture(tmp_path / "IMG_1.JPG") == picture).all()


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1"])
@pytest.mark.usefixtures("without_heif")
def test_heic_without_the_extra(tmp_path: Path, brand: bytes) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(HEIC_START.replace(b"ftypheic", b"ftyp" + brand) + bytes(100))
    error = picture_mistake(path)
    assert isinstance(error, HeicUnreadable)
    assert str(error).startswith(f"{path}: a HEIC picture: pip install 'lynx-parallel[heic]'")
    with pytest.raises(HeicUnreadable):
        read_picture(path)


def test_damaged_heic(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    (tmp_path / "a.heic").write_bytes(HEIC_START + bytes(100))
    error = picture_mistake(tmp_path / "a.heic")
    assert error is not None
    assert not isinstance(error, HeicUnreadable)
    assert "\n" not in str(error)


def test_imports_no_numpy(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.jpg")
    write_heic(tmp_path / "a.heic")
    code = (
        "import sys; from pathlib import Path; from lynx_parallel.inputs.picture_file import picture_mistake;"
        "assert not any(picture_mistake(Path(name)) for name in ('a.jpg', 'a.heic')); print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert not {"torch", "numpy", "ray", "cv2"} & set(run.stdout.split())
