"""IR-SE50 against the recorded embeddings, and its loader against every file that is not one."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lynx_parallel.errors import CheckpointError
from lynx_parallel.subject import arcface
from lynx_parallel.subject.arcface import ArcFace, load_arcface, to_input
from tests.helpers.golden_cases import GOLDEN, relative_error, requires_golden

SMALL = (16, 32, 16, 32)  # one block a stage


def small_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = ArcFace(SMALL).state_dict()
    for key, tensor in state.items():
        if key.endswith(("running_mean", "running_var")):
            tensor.uniform_(0.5, 1.5)  # away from what a fresh network has
    return state


def crop() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (112, 112, 3), dtype=np.uint8)


# The network


@pytest.fixture(scope="module")
def golden_network() -> ArcFace:
    spec = importlib.util.spec_from_file_location("arcface_weights", GOLDEN / "arcface_weights.py")
    assert spec is not None
    assert spec.loader is not None
    rule = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    network = ArcFace().eval()
    network.load_state_dict(rule.fill(network.state_dict()), strict=True)
    return network


@requires_golden
def test_keys_and_shapes_are_facexlibs() -> None:
    shapes = {
        key: tuple(shape) for key, shape in json.loads((GOLDEN / "arcface_ir_se50_keys.json").read_text()).items()
    }
    with torch.device("meta"):
        for network in (ArcFace(), ArcFace.from_shapes(shapes)):
            assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == shapes


@requires_golden
def test_embeddings_equal_the_recorded_ones(golden_network: ArcFace) -> None:
    recorded = load_file(GOLDEN / "arcface_ir_se50.safetensors")
    with torch.inference_mode():
        embedding = golden_network(recorded["input_bgr_minus1_1"])
    # Through 24 blocks of random weights fp32 is itself 5e-6 to 1e-5 away from fp64, by the order of its sums, which
    # follows the CPU and the number of threads. Both sides are; 1.03e-5 was seen on one CPU.
    assert relative_error(embedding, recorded["embedding"]) <= 2e-5


@requires_golden
def test_a_crop_becomes_the_recorded_input(golden_network: ArcFace) -> None:
    recorded = load_file(GOLDEN / "arcface_ir_se50.safetensors")["input_bgr_minus1_1"][0]
    levels = ((recorded * 0.5 + 0.5) * 255).round().byte().permute(1, 2, 0).numpy()
    embedding = golden_network.embed(levels[:, :, ::-1])  # RGB, and not contiguous
    with torch.inference_mode():
        expected = golden_network(recorded[None])[0]
    assert embedding @ expected.numpy() > 0.99
    assert (to_input(levels[:, :, ::-1])[0] - recorded).abs().max() <= 1.01 / 255  # half a level, in [-1, 1]


def test_input_is_bgr_from_minus_one_to_one() -> None:
    picture = np.zeros((112, 112, 3), np.uint8)
    picture[..., 0], picture[..., 1] = 255, 51  # RGB
    blue, green, red = to_input(picture)[0]
    assert (blue == -1).all()
    torch.testing.assert_close(green, torch.full((112, 112), -0.6))
    assert (red == 1).all()


def test_embedding_is_a_unit_vector_of_numpy_floats() -> None:
    network = ArcFace(SMALL)
    network.load_state_dict(small_state())
    embedding = network.eval().embed(crop())
    assert embedding.shape == (512,)
    assert embedding.dtype == np.float32
    assert abs(np.linalg.norm(embedding.astype(np.float64)) - 1) < 1e-6


@pytest.mark.parametrize("wrong", [np.zeros((112, 96, 3), np.uint8), np.zeros((112, 112, 3), np.float32)])
def test_other_crops_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="crop:"):
        ArcFace(SMALL).eval().embed(wrong)


# The loader


def save(path: Path, state: Any, **options: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.safetensors", {}), ("a.pth", {}), ("old.pth", {"_use_new_zipfile_serialization": False})],
)
def test_every_format_gives_the_same_network(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    expected = ArcFace(SMALL)
    expected.load_state_dict(small_state())
    path = save(tmp_path / name, small_state(), **options)
    network = load_arcface(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    np.testing.assert_array_equal(network.embed(crop()), expected.eval().embed(crop()))


def test_half_precision_is_widened(tmp_path: Path) -> None:
    state = {key: value.half() if value.is_floating_point() else value for key, value in small_state().items()}
    network = load_arcface(save(tmp_path / "a.safetensors", state), sha256=None)
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32, torch.int64}


def error_of(path: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as error:
        load_arcface(path, **options)
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


def test_another_file_than_the_known_one_is_refused_by_its_hash(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", small_state())
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    assert error_of(path).startswith(f"sha256: expected {arcface.KNOWN_SHA256}, found {found}")


def drop(state: dict[str, torch.Tensor]) -> None:
    del state["body.1.res_layer.5.fc1.weight"]


def drop_width(state: dict[str, torch.Tensor]) -> None:
    del state["body.1.res_layer.1.weight"]


def add(state: dict[str, torch.Tensor]) -> None:
    state["fc.weight"] = torch.zeros(2)


def reshape(state: dict[str, torch.Tensor]) -> None:
    state["output_layer.3.weight"] = torch.zeros(256, 32 * 49)


def retype(state: dict[str, torch.Tensor]) -> None:
    state["input_layer.1.bias"] = torch.zeros(16, dtype=torch.int64)


def scalar(state: dict[str, torch.Tensor]) -> None:
    state["body.1.res_layer.1.weight"] = torch.zeros(())


def no_blocks(state: dict[str, torch.Tensor]) -> None:
    for key in [key for key in state if key.startswith("body.")]:
        del state[key]


def other_stages(state: dict[str, torch.Tensor]) -> None:
    state["body.3.res_layer.1.weight"] = torch.zeros(16, 16, 3, 3)


def empty(state: dict[str, torch.Tensor]) -> None:
    state.clear()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (drop, "body.1.res_layer.5.fc1.weight: missing (1 missing keys in all)"),
        (drop_width, "body.1.res_layer.1.weight: expected in an IR-SE50 ArcFace, not found"),
        (add, "fc.weight: surplus key"),
        (reshape, "output_layer.3.weight: expected shape [512, 1568], found [256, 1568]"),
        (retype, "input_layer.1.bias: expected dense torch.float32, found torch.strided torch.int64"),
        (scalar, "body.1.res_layer.1.weight: expected a convolution's four dimensions, found shape []"),
        (no_blocks, "body: expected 4 stages, found 0"),
        (other_stages, "body: expected 4 stages, found 3: not an IR-SE50"),
        (empty, "input_layer.0.weight: expected in an IR-SE50 ArcFace, not found"),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, suffix: str, change: Any, expected: str) -> None:
    state = small_state()
    change(state)
    assert error_of(save(tmp_path / f"a{suffix}", state), sha256=None).startswith(expected)


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["LYNX_TEST_BOMB"],)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    monkeypatch.setenv("LYNX_TEST_BOMB", str(tmp_path / "exploded"))
    path = tmp_path / "a.pth"
    write({"input_layer.0.weight": Bomb()}, path)
    assert error_of(path, sha256=None).startswith("holds more than tensors")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("size", [0, 7, 1000, -1000])
def test_cut_off_files_are_unreadable(tmp_path: Path, suffix: str, size: int) -> None:
    path = save(tmp_path / f"a{suffix}", small_state())
    path.write_bytes(path.read_bytes()[:size])
    assert error_of(path, sha256=None).startswith(("not a readable weights file", "holds more than tensors"))


def test_other_content_is_named(tmp_path: Path) -> None:
    assert error_of(tmp_path / "none.pth") == "no such file"
    assert error_of(tmp_path / "none.safetensors", sha256=None) == "no such file"
    assert error_of(save(tmp_path / "a.pth", [1]), sha256=None) == "expected a state dict, found list"
    assert error_of(save(tmp_path / "a.pth", {1: torch.zeros(1)}), sha256=None).startswith("expected a state dict")
    nested = save(tmp_path / "a.pth", {"state_dict": small_state()})
    assert error_of(nested, sha256=None) == "state_dict: expected a tensor, found OrderedDict"
    (tmp_path / "folder.pth").mkdir()
    assert error_of(tmp_path / "folder.pth", sha256=None) == "cannot be read: Is a directory"
