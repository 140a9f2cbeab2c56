"""The committed demo faces are what the code makes, and their landmarks sit on the faces."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from lynx_parallel.demo import faces
from lynx_parallel.inputs.embedding_file import read_embedding
from lynx_parallel.subject.picture import ARCFACE_TEMPLATE, read_picture, similarity

COMMITTED = Path(__file__).resolve().parents[2] / "manifests" / "faces"


def test_drawn_face_equals_the_committed_one() -> None:
    made = np.array(Image.open(io.BytesIO(faces.picture_bytes("drawn"))))
    np.testing.assert_array_equal(made, read_picture(COMMITTED / "drawn.png"))


def test_astronaut_equals_the_committed_one() -> None:
    pytest.importorskip("skimage.data")
    made = np.array(Image.open(io.BytesIO(faces.picture_bytes("astronaut")))).astype(int)
    # libjpeg builds round differently by a grey level or two.
    assert np.abs(made - read_picture(COMMITTED / "astronaut.jpg")).mean() < 0.5


@pytest.mark.parametrize("name", faces.FILES)
def test_embedding_equals_the_committed_one(name: str) -> None:
    vector = faces.embedding(name)
    np.testing.assert_array_equal(read_embedding(COMMITTED / f"{name}.safetensors"), vector)
    assert vector.dtype == np.float32
    assert abs(np.linalg.norm(vector.astype(np.float64)) - 1) < 1e-6


def test_embeddings_are_of_two_people() -> None:
    assert abs(faces.embedding("astronaut") @ faces.embedding("drawn")) < 0.2


def test_all_four_files_are_small(tmp_path: Path) -> None:
    written = faces.write_faces(tmp_path / "new")
    assert sorted(p.name for p in written) == sorted(p.name for p in COMMITTED.iterdir())
    assert sum(path.stat().st_size for path in written) < 300_000


@pytest.mark.parametrize("name", faces.FILES)
def test_landmarks_lie_where_arcface_expects_them(name: str) -> None:
    points = np.array(faces.LANDMARKS[name], dtype=np.float32)
    matrix = similarity(points, ARCFACE_TEMPLATE)
    placed = points @ matrix[:, :2].T + matrix[:, 2]
    assert np.abs(placed - ARCFACE_TEMPLATE).max() < 8  # pixels of 112: a face's own proportions


def test_the_worked_example_gives_these_landmarks() -> None:
    subjects = yaml.safe_load((COMMITTED.parent / "campaign.yaml").read_text())["subjects"]
    by_picture = {Path(s["image"]).name: s["landmarks"] for s in subjects.values() if "landmarks" in s and "image" in s}
    for name, file in faces.FILES.items():
        assert by_picture[file] == faces.LANDMARKS[name]


@pytest.mark.parametrize("name", faces.FILES)
def test_landmarks_mark_pupils_and_the_ends_of_the_mouth(name: str) -> None:
    picture = read_picture(COMMITTED / faces.FILES[name]).astype(int)
    left_eye, right_eye, nose, *corners = [(round(x), round(y)) for x, y in faces.LANDMARKS[name]]
    skin = picture[nose[1] - 8 : nose[1] - 3, nose[0] - 2 : nose[0] + 3].mean()
    for x, y in (left_eye, right_eye):
        assert picture[y - 1 : y + 2, x - 1 : x + 2].mean() < 0.6 * skin
    for (x, y), inwards in zip(corners, (1, -1), strict=True):
        # Skin outside the corner, lip or the gap between the lips within: the redness jumps.
        redness = picture[..., 0] / (1 + picture[..., 1:].mean(axis=-1))
        outside, inside = (redness[y - 1 : y + 3, x + step * inwards] for step in (-5, 4))
        assert inside.max() > 1.2 * outside.min()
