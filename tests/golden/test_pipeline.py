"""LynxPipeline against the recordings of the reference implementation.

From case.json, the picture, its landmarks, the embedding, the adapters and the tiny Wan alone.
"""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lynx_parallel.subject.picture import id_crop, read_picture, ref_crop
from tests.helpers.golden_cases import case_names, load_case, relative_error, requires_golden
from tests.helpers.golden_pipeline import DECODED_TOLERANCE, TOLERANCE, case_sampling, load_pipeline, run_case

pytestmark = requires_golden


@pytest.mark.parametrize("keep_projections", [True, False], ids=["projections kept", "projections freed"])
@pytest.mark.parametrize("name", case_names())
def test_every_recorded_tensor(name: str, keep_projections: bool) -> None:
    case = load_case(name)
    expected = {key: t for key, t in case.expected.items() if key not in ("landmarks", "face_embedding")}
    made = run_case(case, keep_projections=keep_projections)
    assert made.keys() == expected.keys()
    errors = {key: relative_error(made[key].float(), tensor.float()) for key, tensor in expected.items()}
    limits = {key: DECODED_TOLERANCE if key == "decoded_video" else TOLERANCE for key in expected}
    assert not {key: error for key, error in errors.items() if error > limits[key]}
    assert errors["initial_latents"] == errors["timesteps"] == 0


@pytest.mark.parametrize("name", case_names())
def test_crops(name: str) -> None:
    case = load_case(name)
    picture, landmarks = read_picture(case.folder / "subject.png"), case.expected["landmarks"].numpy()
    for crop, file in (
        (ref_crop(picture, landmarks), "aligned_face.png"),
        (id_crop(picture, landmarks), "id_crop.png"),
    ):
        recorded = np.array(Image.open(case.folder / file).convert("RGB")).astype(int)
        assert np.abs(crop.astype(int) - recorded).max() <= 1


def test_call_returns_frames_and_latents() -> None:
    case = load_case("full_b")
    output = load_pipeline(case)(
        case.settings["prompt"],
        image=case.folder / "subject.png",
        landmarks=case.expected["landmarks"].numpy(),
        embedding=case.expected["face_embedding"].numpy(),
        **case_sampling(case).model_dump(),
    )
    assert output.frames.shape == (5, 48, 80, 3)
    assert output.frames.dtype == np.uint8
    assert relative_error(output.latents, case.expected["final_latents"]) < TOLERANCE
    video = (case.expected["decoded_video"][0].permute(1, 2, 3, 0).numpy() + 1) * 127.5
    assert np.abs(output.frames - video).max() <= 1
