"""Detects faces with their five landmarks, and chooses among several faces.

No torch here, and insightface, onnxruntime and OpenCV only once a detector is made.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lynx_parallel.errors import CheckpointError, SubjectError
from lynx_parallel.subject.detector_files import PACK, find_pack, onnx_outputs, packages
from lynx_parallel.subject.picture import Picture
from lynx_parallel.text import first_line

DET_SIZE = 640
THRESHOLD = 0.5  # insightface's default, for both detectors
YUNET_OUTPUTS = {f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps") for stride in (8, 16, 32)}
ADVICE = "use a picture of one face from the front, upright, at least 256 pixels wide; or give its landmarks"

FaceChoice = Literal["largest", "only"] | int


@dataclass(frozen=True, eq=False)
class Face:
    """A detected face, in the picture's pixels; a point may lie a little outside the picture.

    Attributes:
        landmarks: [5, 2] float32, in ARCFACE_TEMPLATE's order (left as the viewer sees it first).
        box: left, top, right, bottom.
        score: the detector's confidence, 0 to 1.
    """

    landmarks: NDArray[np.float32]
    box: tuple[float, float, float, float]
    score: float

    @property
    def area(self) -> float:
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


class Detector(Protocol):
    """A face detector."""

    def detect(self, image: Picture) -> list[Face]:
        """Returns the faces in an RGB picture [H, W, 3], in no particular order. No face is no error."""


class InsightFaceDetector:
    """insightface's SCRFD, as upstream runs it.

    Args:
        root_or_pack: a folder of ``.onnx`` files, or a models root that holds ``buffalo_l``.
        det_size: the picture is fitted into a square of this side; ignored by a network of fixed size.
        rgb_quirk: pass RGB to insightface, which expects BGR, as upstream does. With False, the network gets what it
            was trained on, and the landmarks differ slightly from upstream's.

    Raises:
        CheckpointError: no such pack, no detector of landmarks in it, or an unreadable file. Nothing is
            ever downloaded.
        ClusterError: insightface cannot be imported.
        ValueError: ``det_size`` is no multiple of 32, SCRFD's coarsest stride.
    """

    def __init__(
        self,
        root_or_pack: Path | str,
        *,
        det_size: int = DET_SIZE,
        rgb_quirk: bool = True,
        threshold: float = THRESHOLD,
    ):
        if det_size < 32 or det_size % 32:
            raise ValueError(f"det_size: {det_size}: not a multiple of 32")
        self.pack = find_pack(Path(root_or_pack))
        self.rgb_quirk = rgb_quirk
        with packages():
            from insightface.app import FaceAnalysis
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                # A path to an existing folder: only a bare name would be looked up, then downloaded.
                analysis = FaceAnalysis(
                    name=str(self.pack.absolute()),
                    allowed_modules=["detection"],
                    providers=["CPUExecutionProvider"],
                )
                analysis.prepare(ctx_id=-1, det_thresh=threshold, det_size=(det_size, det_size))
        except Exception as error:  # onnxruntime's own classes, protobuf's, AssertionError, ValueError
            raise CheckpointError(f"{self.pack}: insightface cannot load this pack: {first_line(error)}") from error
        if not analysis.det_model.use_kps:
            raise CheckpointError(f"{self.pack}: {analysis.det_model.model_file}: finds faces but no landmarks")
        self._analysis = analysis
        self._side = min(analysis.det_model.input_size)

    def detect(self, image: Picture) -> list[Face]:
        height, width = image.shape[:2]
        if max(height, width) > self._side * min(height, width):
            return []  # scaled down, less than one pixel wide: insightface would fail
        given = image if self.rgb_quirk else np.ascontiguousarray(image[:, :, ::-1])
        try:
            found = self._analysis.get(given)
        except Exception as error:  # the network's outputs are not SCRFD's
            raise CheckpointError(f"{self.pack}: its detector does not run: {first_line(error)}") from error
        faces = [Face(np.asarray(f.kps, np.float32), _box(*f.bbox), float(f.det_score)) for f in found]
        return [face for face in faces if _is_in(face, width, height)]


class YuNetDetector:
    """OpenCV's YuNet (``face_detection_yunet_2023mar.onnx`` and later), MIT: free for commercial use.

    Its landmarks differ slightly from SCRFD's, hence so do the crops and the embedding.

    Args:
        onnx: the model file.
        det_size: larger pictures are scaled down to this side, and to half of it where nothing is found:
            YuNet sees faces of some 10 to 300 pixels.

    Raises:
        CheckpointError: missing, or not a YuNet model.
        ClusterError: OpenCV cannot be imported, or has no YuNet.
    """

    def __init__(self, onnx: Path | str, *, det_size: int = DET_SIZE, threshold: float = THRESHOLD):
        path = Path(onnx)
        if missing := sorted(YUNET_OUTPUTS - set(onnx_outputs(path))):
            raise CheckpointError(f"{path}: {missing[0]}: expected among a YuNet model's outputs, not found")
        with packages():
            import cv2

            create = cv2.FaceDetectorYN.create
        self.path, self.det_size = path, det_size
        try:
            with _quiet_opencv():
                self._network = create(str(path), "", (det_size, det_size), threshold)
        except Exception as error:  # cv2.error
            raise CheckpointError(f"{path}: OpenCV cannot load this model: {first_line(error)}") from error

    def detect(self, image: Picture) -> list[Face]:
        smaller = self.det_size // 2
        faces = self._detect(image, self.det_size)
        return faces if faces or max(image.shape[:2]) <= smaller else self._detect(image, smaller)

    def _detect(self, image: Picture, side: int) -> list[Face]:
        import cv2

        height, width = image.shape[:2]
        scale = min(1.0, side / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        bgr = np.ascontiguousarray(image[:, :, ::-1])
        if size != (width, height):
            bgr = cv2.resize(bgr, size, interpolation=cv2.INTER_AREA)
        try:
            self._network.setInputSize(size)
            _, rows = self._network.detect(bgr)
        except cv2.error as error:
            raise CheckpointError(f"{self.path}: OpenCV cannot run this model: {first_line(error)}") from error
        if rows is None:
            return []
        faces = yunet_faces(rows, width / size[0], height / size[1])
        return [face for face in faces if _is_in(face, width, height)]


def yunet_faces(rows_N15: NDArray[np.float32], scale_x: float = 1.0, scale_y: float = 1.0) -> list[Face]:
    """YuNet's rows: left, top, width, height, five points, score; coordinates are multiplied by the scales.

    YuNet names its points as the person would: right eye, left eye, nose, right and left corner of the
    mouth. The person's right is the viewer's left, so that is ARCFACE_TEMPLATE's order already.
    """
    faces = []
    for row in np.asarray(rows_N15, np.float32):
        left, top, width, height = (float(number) for number in row[:4])
        landmarks = row[4:14].reshape(5, 2) * np.array([scale_x, scale_y], np.float32)
        box = _box(left * scale_x, top * scale_y, (left + width) * scale_x, (top + height) * scale_y)
        faces.append(Face(landmarks, box, float(row[14])))
    return faces


def make_detector(
    spec: Path | str, *, det_size: int = DET_SIZE, rgb_quirk: bool = True, threshold: float = THRESHOLD
) -> Detector:
    """Returns the detector that ``spec`` names: a YuNet ``.onnx`` file, an insightface folder, or ``buffalo_l`` alone.

    The bare name means the folder where insightface itself keeps it, ``~/.insightface/models``.

    Raises:
        CheckpointError: as the detectors; or an ``.onnx`` file that is no YuNet model.
        ClusterError: as the detectors.
    """
    path = Path(spec).expanduser()
    if str(spec) == PACK and not path.exists():
        path = Path("~/.insightface/models").expanduser() / PACK
    if path.suffix.lower() != ".onnx":
        return InsightFaceDetector(path, det_size=det_size, rgb_quirk=rgb_quirk, threshold=threshold)
    if not set(onnx_outputs(path)) & YUNET_OUTPUTS:
        raise CheckpointError(f"{path}: not a YuNet model; for an insightface detector name its folder")
    return YuNetDetector(path, det_size=det_size, threshold=threshold)


def choose_face(faces: Sequence[Face], choice: FaceChoice, where: str) -> tuple[Face, str | None]:
    """Returns the subject's face, and a warning if the choice was a guess.

    Args:
        choice: ``largest`` by box; ``only``, which takes no second face; or the n-th from the left, from 1.
        where: the picture's path, for messages.

    Raises:
        SubjectError: no face; several, under ``only``; fewer than n.
        ValueError: another choice.
    """
    if choice not in ("largest", "only") and (isinstance(choice, bool) or not isinstance(choice, int)):
        raise ValueError(f"choice: {choice!r}: not largest, only, or a number")
    if not faces:
        raise SubjectError(f"{where}: no face found: {ADVICE}")
    ordered = sorted(faces, key=lambda face: (face.box[0] + face.box[2], face.box[1] + face.box[3]))
    count = len(ordered)
    if isinstance(choice, int):
        if not 1 <= choice <= count:
            raise SubjectError(f"{where}: face {choice} from the left: {_faces(count)} found")
        return ordered[choice - 1], None
    if choice == "only" and count > 1:
        raise SubjectError(f"{where}: {_faces(count)} found, one alone is allowed: crop it, or say which one")
    number, face = max(enumerate(ordered, 1), key=lambda item: (item[1].area, item[1].score))
    warning = f"{where}: {_faces(count)} found, took the largest, number {number} from the left"
    return face, warning if count > 1 else None


def _box(left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
    return float(left), float(top), float(right), float(bottom)


def _is_in(face: Face, width: int, height: int) -> bool:
    """Returns whether the box overlaps the picture, and all numbers are finite."""
    left, top, right, bottom = face.box
    overlaps = max(left, 0) < min(right, width) and max(top, 0) < min(bottom, height)  # False for NaN
    return overlaps and bool(np.isfinite(face.landmarks).all() and np.isfinite(face.box).all())


def _faces(count: int) -> str:
    return "1 face" if count == 1 else f"{count} faces"


@contextlib.contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Silences OpenCV 5's warning about its own default target."""
    import cv2

    logging: Any = cv2.utils.logging
    level = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_ERROR)
    try:
        yield
    finally:
        logging.setLogLevel(level)
