"""The committed demo faces are what the code makes, and their landmarks sit on the faces."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lynx_parallel.demo import faces
from lynx_parallel.stages.subject import ARCFACE_TEMPLATE, id_crop, read_embedding, read_picture, similarity

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


def test_landmarks_mark_dark_pupils_and_a_red_mouth() -> None:
    picture = read_picture(COMMITTED / "astronaut.jpg").astype(int)
    for x, y in faces.LANDMARKS["astronaut"][:2]:
        pupil = picture[round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2].mean()
        cheek = picture[round(y) + 16, round(x)].mean()
        assert pupil < 0.6 * cheek
    crop = id_crop(read_picture(COMMITTED / "drawn.png"), faces.LANDMARKS["drawn"]).astype(int)
    mouth = crop[88:108, 44:69].reshape(-1, 3)
    assert (mouth[:, 0] > mouth[:, 1] + 60).any()
