"""Face detection through insightface's and OpenCV's own code, on tiny networks with known answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lynx_parallel.errors import CheckpointError, ClusterError, LynxError
from lynx_parallel.subject import detector_files as face_models
from lynx_parallel.subject.detection import Face, InsightFaceDetector, YuNetDetector, make_detector, yunet_faces
from lynx_parallel.subject.picture import ARCFACE_TEMPLATE, id_crop
from tests.helpers.tiny_detectors import answer, write_other, write_scrfd, write_yunet

ONE = answer(16, 8, 32)
ALSO = answer(2, 30, 16, 0.875)


def grey(height: int = 64, width: int = 64, level: int = 200) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


@pytest.fixture(autouse=True)
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    import insightface.utils.storage

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(insightface.utils.storage, "download_file", refuse)


def pack(folder: Path, *answers: Any, **options: Any) -> Path:
    write_scrfd(folder / "det_tiny.onnx", answers, **options)
    write_other(folder / "1k3d68.onnx", (1, 3, 192, 192))
    write_other(folder / "w600k_r50.onnx")
    return folder


def check(face: Face, expected: Any, scale: float = 1.0) -> None:
    score, box, points = expected
    assert face.landmarks.dtype == np.float32
    np.testing.assert_allclose(face.landmarks, np.array(points) * scale, rtol=1e-6)
    np.testing.assert_allclose(face.box, np.array(box) * scale, rtol=1e-6)
    assert face.score == pytest.approx(score)


# insightface


def test_a_known_face_is_found_and_none_in_a_black_picture(tmp_path: Path) -> None:
    detector = InsightFaceDetector(pack(tmp_path, ONE))
    (face,) = detector.detect(grey())
    check(face, ONE)
    assert detector.detect(grey(level=0)) == []


def test_several_faces(tmp_path: Path) -> None:
    faces = InsightFaceDetector(pack(tmp_path, ONE, ALSO)).detect(grey())
    assert len(faces) == 2
    for face, expected in zip(sorted(faces, key=lambda face: face.score), (ONE, ALSO), strict=True):
        check(face, expected)


@pytest.mark.parametrize(("height", "width", "scale"), [(128, 128, 2), (256, 128, 4), (48, 96, 1.5), (32, 32, 0.5)])
def test_landmarks_are_in_the_pictures_pixels(tmp_path: Path, height: int, width: int, scale: float) -> None:
    (face,) = InsightFaceDetector(pack(tmp_path, ALSO)).detect(grey(height, width))
    check(face, ALSO, scale)


def test_det_size_reaches_a_network_of_free_size(tmp_path: Path) -> None:
    folder = pack(tmp_path, ONE, dynamic=True)
    (face,) = InsightFaceDetector(folder, det_size=64).detect(grey(256, 256))
    check(face, ONE, 4)
    with pytest.raises(ValueError, match="det_size: 100"):
        InsightFaceDetector(folder, det_size=100)


@pytest.mark.parametrize(("rgb_quirk", "seen"), [(True, 2), (False, 0)])
def test_the_references_colour_order_and_the_right_one(tmp_path: Path, rgb_quirk: bool, seen: int) -> None:
    detector = InsightFaceDetector(pack(tmp_path, ONE, channel=0), rgb_quirk=rgb_quirk)  # channel 0: made for red
    for channel in range(3):
        picture = grey(level=0)
        picture[..., channel] = 255
        assert len(detector.detect(picture)) == (channel == seen)


def test_threshold(tmp_path: Path) -> None:
    pack(tmp_path, answer(16, 8, 32, 0.45))
    assert InsightFaceDetector(tmp_path).detect(grey()) == []
    assert len(InsightFaceDetector(tmp_path, threshold=0.4).detect(grey())) == 1


def test_a_face_beyond_the_edge_is_dropped_and_one_across_it_kept(tmp_path: Path) -> None:
    across, beyond = answer(-8, 10, 24), answer(70, 10, 24)
    faces = InsightFaceDetector(pack(tmp_path, across, beyond)).detect(grey())
    assert len(faces) == 1
    check(faces[0], across)
    assert faces[0].landmarks[0, 0] < 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 10_000), (10_000, 1), (1, 64), (65, 1)])
def test_slivers_of_pictures_do_not_crash(tmp_path: Path, shape: tuple[int, int]) -> None:
    yunet = YuNetDetector(write_yunet(tmp_path / "yunet.onnx", [ONE]), det_size=64)
    for detector in (InsightFaceDetector(pack(tmp_path / "pack", ONE)), yunet):
        assert detector.detect(grey(*shape, level=0)) == []


@pytest.mark.parametrize("inner", [".", "buffalo_l", "models/buffalo_l"])
def test_a_pack_or_a_root_that_holds_one(tmp_path: Path, inner: str) -> None:
    pack(tmp_path / inner, ONE)
    detector = make_detector(tmp_path)
    assert isinstance(detector, InsightFaceDetector)
    assert detector.pack == tmp_path / inner
    assert len(detector.detect(grey())) == 1


def test_the_bare_name_means_insightfaces_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert "models/buffalo_l: no such folder" in refusal(lambda: make_detector("buffalo_l"))
    pack(tmp_path / ".insightface/models/buffalo_l", ONE)
    assert len(make_detector("buffalo_l").detect(grey())) == 1


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    InsightFaceDetector(pack(tmp_path, ONE)).detect(grey())
    YuNetDetector(write_yunet(tmp_path / "yunet.onnx", [ONE])).detect(grey())
    assert capfd.readouterr() == ("", "")


# Files that are no detectors


def refusal(make: Any, kind: type[LynxError] = CheckpointError) -> str:
    with pytest.raises(kind) as error:
        make()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_pack(tmp_path: Path) -> None:
    line = refusal(lambda: make_detector(tmp_path / "nowhere"))
    assert line.startswith(f"{tmp_path}/nowhere: no such folder")
    assert "non-commercial" in line


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "no .onnx file" in refusal(lambda: make_detector(tmp_path))


def test_a_pack_without_a_detector(tmp_path: Path) -> None:
    write_other(tmp_path / "w600k_r50.onnx")
    line = refusal(lambda: make_detector(tmp_path))
    assert "no detector" in line
    assert "w600k_r50.onnx" in line


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x08\x07garbage" * 99])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "det_10g.onnx").write_bytes(content)
    assert "det_10g.onnx: not a readable ONNX model" in refusal(lambda: make_detector(tmp_path))
    assert "det_10g.onnx: not a readable ONNX model" in refusal(lambda: make_detector(tmp_path / "det_10g.onnx"))


def test_a_damaged_neighbour_of_the_detector(tmp_path: Path) -> None:
    pack(tmp_path, ONE)
    (tmp_path / "w600k_r50.onnx").write_bytes(b"\x08\x07garbage" * 99)
    assert "w600k_r50.onnx" in refusal(lambda: make_detector(tmp_path))


def test_a_cut_off_detector(tmp_path: Path) -> None:
    file = pack(tmp_path, ONE) / "det_tiny.onnx"
    file.write_bytes(file.read_bytes()[:-500])
    assert "det_tiny.onnx" in refusal(lambda: make_detector(tmp_path))


def test_other_onnx_files_given_as_the_detector(tmp_path: Path) -> None:
    assert "name its folder" in refusal(lambda: make_detector(write_scrfd(tmp_path / "det.onnx", [ONE])))
    assert "no such file" in refusal(lambda: make_detector(tmp_path / "none.onnx"))
    assert "bbox_16: expected" in refusal(lambda: YuNetDetector(tmp_path / "det.onnx"))


def test_a_missing_package_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(tmp_path, ONE)
    monkeypatch.setitem(sys.modules, "insightface.app", None)
    assert "insightface" in refusal(lambda: make_detector(tmp_path), ClusterError)


def test_the_detector_is_found_without_reading_the_recogniser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    outputs = face_models.onnx_outputs
    monkeypatch.setattr(face_models, "onnx_outputs", lambda path: read.append(path.name) or outputs(path))
    face_models.find_pack(pack(tmp_path, ONE))
    assert read == ["det_tiny.onnx"]


def test_importing_loads_no_heavy_package() -> None:
    code = (
        "import sys; import lynx_parallel.subject.detection;"
        "print([m for m in ('torch', 'cv2', 'onnx', 'onnxruntime', 'insightface') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


# YuNet


def test_yunet_finds_a_known_face_and_none_in_a_black_picture(tmp_path: Path) -> None:
    detector = make_detector(write_yunet(tmp_path / "yunet.onnx", [ONE, ALSO]))
    assert isinstance(detector, YuNetDetector)
    faces = detector.detect(grey())
    assert len(faces) == 2
    for face, expected in zip(sorted(faces, key=lambda face: face.score), (ONE, ALSO), strict=True):
        check(face, expected)
    assert detector.detect(grey(level=0)) == []


def test_yunet_landmarks_are_in_the_pictures_pixels(tmp_path: Path) -> None:
    detector = YuNetDetector(write_yunet(tmp_path / "yunet.onnx", [ALSO]), det_size=64)
    for height, width, scale in ((256, 256, 4.0), (64, 40, 1.0), (256, 160, 4.0)):
        (face,) = detector.detect(grey(height, width))
        check(face, ALSO, scale)


def test_yunet_looks_again_at_half_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = YuNetDetector(write_yunet(tmp_path / "yunet.onnx", [ONE]), det_size=64)
    sizes = []

    class Network:
        def setInputSize(self, size: Any) -> None:
            sizes.append(size)

        def detect(self, image: np.ndarray) -> Any:
            assert image.shape[1::-1] == sizes[-1]
            return 1, None

    monkeypatch.setattr(detector, "_network", Network())
    assert detector.detect(grey(100, 200)) == []
    assert detector.detect(grey(20, 10)) == []
    assert sizes == [(64, 32), (32, 16), (10, 20)]


def test_yunet_is_given_bgr(tmp_path: Path) -> None:
    detector = YuNetDetector(write_yunet(tmp_path / "yunet.onnx", [ONE]))  # looks at channel 0: blue
    for channel in range(3):
        picture = grey(level=0)
        picture[..., channel] = 255
        assert len(detector.detect(picture)) == (channel == 2)


def test_yunet_points_are_in_arcfaces_order() -> None:
    # OpenCV documents its columns as right eye, left eye, nose tip, right and left corner of the mouth, of the
    # person: in a picture the person's right eye is to the left.
    person = {"right eye": (38, 52), "left eye": (74, 52), "nose": (56, 72), "right": (42, 92), "left": (71, 92)}
    columns = [number for name in ("right eye", "left eye", "nose", "right", "left") for number in person[name]]
    (face,) = yunet_faces(np.array([[30, 40, 50, 60, *columns, 0.9]], np.float32))
    assert np.abs(face.landmarks - ARCFACE_TEMPLATE).max() < 1
    assert face.box == (30, 40, 80, 100)
    picture = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    crop = id_crop(picture, face.landmarks)
    np.testing.assert_allclose(crop[20:90, 20:90].mean(), picture[20:90, 20:90].mean(), atol=2)
    (scaled,) = yunet_faces(np.array([[30, 40, 50, 60, *columns, 0.9]], np.float32), 2.0, 3.0)
    np.testing.assert_array_equal(scaled.landmarks, face.landmarks * np.float32([2, 3]))
    assert scaled.box == (60, 120, 160, 300)


def test_yunet_drops_rows_that_are_not_finite_or_beyond_the_edge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = YuNetDetector(write_yunet(tmp_path / "yunet.onnx", [ONE]))
    good = [10, 10, 20, 20, *range(10, 20), 0.9]
    bad_point, bad_box, beyond = list(good), list(good), list(good)
    bad_point[7], bad_box[2], beyond[0] = np.nan, np.inf, 64

    class Network:
        def setInputSize(self, size: Any) -> None: ...

        def detect(self, image: np.ndarray) -> Any:
            return 1, np.array([bad_point, good, bad_box, beyond], np.float32)

    monkeypatch.setattr(detector, "_network", Network())
    assert len(detector.detect(grey())) == 1
