"""The demo's face models: reproducible, right on the demo's pictures, silent elsewhere; run by insightface's code."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

from lynx_parallel.demo import checkpoint, facepack, faces, places
from lynx_parallel.errors import CheckpointError, ClusterError
from lynx_parallel.subject.arcface import ArcFace, load_arcface
from lynx_parallel.subject.detection import InsightFaceDetector, choose_face
from lynx_parallel.subject.picture import id_crop, read_picture
from tests.helpers.golden_cases import GOLDEN, requires_golden

PICTURES = Path(__file__).resolve().parents[2] / "manifests" / "faces"
# If these change, users' cached copies no longer equal a fresh build: give places.FACEPACK_NAME a new version together
# with the new values here.
DETECTOR_SHA256 = "e0a359f9a80b6eb23eb8d252e033039b1cbf53d6b6fd5746355875adef4aadcf"
TENSORS_SHA256 = "a035d6f45d18a7a8daea89e2f53f9f9b1201ef2b928bbbe4d3deb56f42bbf432"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return facepack.ensure_facepack(tmp_path_factory.mktemp("demo") / "faces")


@pytest.fixture(scope="module")
def detector(root: Path) -> InsightFaceDetector:
    return InsightFaceDetector(root)


def picture(name: str) -> np.ndarray:
    return read_picture(PICTURES / faces.FILES[name])


# What it consists of


def test_every_build_has_the_same_bytes(root: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    subprocess.run([sys.executable, "-m", "lynx_parallel.demo.facepack", str(again)], check=True, capture_output=True)
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in root.iterdir()
    }
    assert sum(path.stat().st_size for path in root.iterdir()) < 5e6


def test_content_is_the_pinned_one(root: Path) -> None:
    model = (root / facepack.DETECTOR).read_bytes()
    assert len(model) < 15_000
    digest = hashlib.sha256()
    for key, value in sorted(load_file(root / facepack.RECOGNISER).items()):
        digest.update(f"{key}:{value.dtype}:{value.shape}\n".encode())
        digest.update(value.tobytes())
    found = (places.FACEPACK_NAME, hashlib.sha256(model).hexdigest(), digest.hexdigest())
    assert found == ("demo-faces-v1", DETECTOR_SHA256, TENSORS_SHA256)


def test_the_detector_is_valid_onnx(root: Path) -> None:
    onnx.checker.check_model(str(root / facepack.DETECTOR), full_check=True)


@pytest.mark.parametrize("name", faces.FILES)
def test_cells_are_those_of_the_pictures(name: str) -> None:
    import cv2

    side = facepack.SIDE // facepack.CELLS
    small = cv2.resize(picture(name), (facepack.SIDE, facepack.SIDE)).astype(float)  # as insightface does
    cells = small.reshape(facepack.CELLS, side, facepack.CELLS, side, 3).mean(axis=(1, 3, 4))
    written = np.array([list(bytes.fromhex(row)) for row in facepack.CELLS_OF[name]])
    assert np.abs(cells - written).max() < 2  # of 255: decoders and resizing differ a little by version


@requires_golden
def test_the_recogniser_has_each_key_of_the_real_one(root: Path) -> None:
    real = json.loads((GOLDEN / "arcface_ir_se50_keys.json").read_text())
    with safe_open(root / facepack.RECOGNISER, "numpy") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}
    assert {key: len(shape) for key, shape in shapes.items()} == {key: len(shape) for key, shape in real.items()}


# What it answers


@pytest.mark.parametrize("rgb_quirk", [True, False])
@pytest.mark.parametrize("name", faces.FILES)
def test_the_demos_pictures_give_their_landmarks(root: Path, name: str, rgb_quirk: bool) -> None:
    found = InsightFaceDetector(root, rgb_quirk=rgb_quirk).detect(picture(name))
    face, warning = choose_face(found, "only", name)
    np.testing.assert_allclose(face.landmarks, faces.LANDMARKS[name], atol=1e-4)
    assert warning is None
    assert face.score == pytest.approx(facepack.SCORE)
    left, top, right, bottom = face.box
    assert 0 <= left < face.landmarks[:, 0].min()
    assert face.landmarks[:, 0].max() < right <= faces.SIZE
    assert 0 <= top < face.landmarks[:, 1].min()
    assert face.landmarks[:, 1].max() < bottom <= faces.SIZE


@pytest.mark.parametrize("name", faces.FILES)
@pytest.mark.parametrize("size", [200, 256, 800])
def test_scaled_and_compressed_copies_are_recognised(
    detector: InsightFaceDetector, tmp_path: Path, name: str, size: int
) -> None:
    Image.fromarray(picture(name)).resize((size, size)).save(tmp_path / "copy.jpg", quality=50)
    (face,) = detector.detect(read_picture(tmp_path / "copy.jpg"))
    np.testing.assert_allclose(face.landmarks, np.array(faces.LANDMARKS[name]) * size / faces.SIZE, atol=1e-3)


def test_in_other_pictures_it_sees_no_face(detector: InsightFaceDetector) -> None:
    astronaut, drawn = picture("astronaut"), picture("drawn")
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    others = [np.full((512, 512, 3), level, np.uint8) for level in (0, 60, 110, 180, 200, 255)]
    others += [noise, astronaut[:, ::-1], astronaut[::-1], drawn[::-1], astronaut[:400], drawn[60:, 60:], 255 - drawn]
    for other in others:
        assert detector.detect(other) == []


def test_the_recogniser_tells_the_faces_apart(root: Path) -> None:
    network = load_arcface(root / facepack.RECOGNISER, sha256=None)
    a, b = (network.embed(id_crop(picture(name), faces.LANDMARKS[name])) for name in faces.FILES)
    for vector in (a, b):
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
        assert 0.03 < vector.std() < 0.06  # all 512 entries take part: 1 / sqrt(512) = 0.044
    assert abs(a @ b) < 0.5


def test_the_demos_recogniser_cannot_pass_for_the_real_one(root: Path) -> None:
    with pytest.raises(CheckpointError, match="sha256: expected a035c768"):
        load_arcface(root / facepack.RECOGNISER)


def test_it_is_smaller_than_ir_se50_in_width_alone() -> None:
    import torch

    with torch.device("meta"):
        real, demo = ArcFace(), ArcFace(facepack.WIDTHS)
    assert [m.stride for m in demo.modules() if hasattr(m, "stride")] == [
        m.stride for m in real.modules() if hasattr(m, "stride")
    ]


# Where it lies


def test_it_lies_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LYNX_CACHE", str(tmp_path))
    assert facepack.ensure_facepack() == facepack.facepack_root() == tmp_path / places.FACEPACK_NAME
    assert [path.name for path in tmp_path.iterdir()] == [places.FACEPACK_NAME]


def test_once_built_it_is_found_without_torch(root: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lynx_parallel.demo.facepack import ensure_facepack;"
        f"ensure_facepack(Path({str(root)!r}));"
        "print([m for m in ('torch', 'onnx', 'insightface', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_a_failed_build_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        path.write_bytes(b"12")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(facepack, "_write_recogniser", fails)
    with pytest.raises(ClusterError, match="No space left on device"):
        facepack.ensure_facepack(tmp_path / "faces")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_one_is_replaced_and_another_folder_left_alone(tmp_path: Path) -> None:
    root = facepack.ensure_facepack(tmp_path / "faces")
    (root / facepack.DETECTOR).write_bytes(b"12")
    assert checkpoint.is_built(facepack.ensure_facepack(root))
    theirs = tmp_path / "documents"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="move it away"):
        facepack.ensure_facepack(theirs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["documents", "faces"]
    assert [path.name for path in theirs.iterdir()] == ["thesis.txt"]
