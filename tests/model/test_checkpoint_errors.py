"""The well-known mistakes with weights files, and the exact line that each is answered with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.weight_files import WeightFiles
from lynx_parallel.model.checkpoints import load_resampler, load_transformer, load_vae


@dataclass(frozen=True)
class Files:
    demo: Path
    folder: Path
    weights: WeightFiles

    def edit(self, path: Path | None, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
        assert path is not None
        tensors = load(path.read_bytes())
        change(tensors)
        path.write_bytes(save(tensors))


@pytest.fixture
def files(demo: Path, tmp_path: Path) -> Files:
    for name in ("wan/transformer", "full", "lite"):
        shutil.copytree(demo / name, tmp_path / name)
    full = tmp_path / "full"
    names = ("resampler", "ip_layers", "ref_layers")
    return Files(demo, tmp_path, WeightFiles(tmp_path / "wan", *(full / f"{name}.safetensors" for name in names)))


Change = Callable[[Files], WeightFiles | None]


def lite_resampler(files: Files) -> WeightFiles:
    return replace(files.weights, resampler=files.folder / "lite/resampler.safetensors")


def lite_id(files: Files) -> WeightFiles:
    return replace(files.weights, id=files.folder / "lite/ip_layers.safetensors", ref=None)


def swapped(files: Files) -> WeightFiles:
    return replace(files.weights, id=files.weights.ref, ref=files.weights.id)


def gone(files: Files) -> None:
    files.weights.id.unlink()


def truncated(files: Files) -> None:
    files.weights.id.write_bytes(files.weights.id.read_bytes()[:-100])


def fewer_blocks(files: Files) -> None:
    files.edit(files.weights.ref, lambda tensors: [tensors.pop(key) for key in list(tensors) if key.startswith("2.")])


def wider_base(files: Files) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for key, tensor in tensors.items():
            if key.endswith("weight"):
                tensors[key] = torch.zeros(tensor.shape[0] * 2, tensor.shape[1])

    files.edit(files.weights.id, widen)


def missing(files: Files) -> None:
    files.edit(files.weights.id, lambda tensors: tensors.pop("1.to_v_ip.bias"))


def missing_in_base(files: Files) -> None:
    path = files.weights.base / "transformer/diffusion_pytorch_model.safetensors"
    files.edit(path, lambda tensors: tensors.pop("scale_shift_table"))


def surplus(files: Files) -> None:
    files.edit(files.weights.id, lambda tensors: tensors.update({"optimizer": torch.zeros(1)}))


def surplus_in_base(files: Files) -> None:
    path = files.weights.base / "transformer/diffusion_pytorch_model.safetensors"
    files.edit(path, lambda tensors: tensors.update({"blocks.0.attn2.add_k_proj.weight": torch.zeros(1)}))


def transposed(files: Files) -> None:
    files.edit(files.weights.resampler, lambda t: t.update({"proj_in.weight": t["proj_in.weight"].T.contiguous()}))


def scalar(files: Files) -> None:
    files.edit(files.weights.id, lambda tensors: tensors.update({"0.to_k_ip.weight": torch.zeros(())}))


def quantised(files: Files) -> None:
    files.edit(files.weights.ref, lambda t: t.update({"0.to_k_ref.weight": t["0.to_k_ref.weight"].to(torch.int8)}))


def both_layouts(files: Files) -> None:
    key = "blocks.0.cross_attn.ip_adapter.registers"
    files.edit(files.weights.id, lambda tensors: tensors.update({key: tensors["0.registers"].clone()}))


def not_json(files: Files) -> None:
    (files.weights.base / "transformer/config.json").write_text("{")


def no_layers(files: Files) -> None:
    path = files.weights.base / "transformer/config.json"
    path.write_text(path.read_text().replace('"num_layers": 3', '"num_layers": 1000000000'))


ID, REF, RESAMPLER = "full/ip_layers.safetensors", "full/ref_layers.safetensors", "full/resampler.safetensors"


@pytest.mark.parametrize(
    ("mistake", "expected"),
    [
        (lite_resampler, "lite/resampler.safetensors: proj_out.weight: makes tokens of size 64, but {folder}" + ID
         + " takes 96: resampler and ID layers must both be Lynx full's or both Lynx lite's"),
        (lite_id, f"{RESAMPLER}: proj_out.weight: makes tokens of size 96, but {{folder}}lite/ip_layers.safetensors "
         "takes 64: resampler and ID layers must both be Lynx full's or both Lynx lite's"),
        (swapped, f"{REF}: 0.to_k_ref.bias: not a key of Lynx's id layers"),
        (gone, f"{ID}: no such file"),
        (fewer_blocks, f"{REF}: has layers for blocks [0, 1], expected [0, 1, 2]: "
         "were they made for another base than this one of 3 blocks?"),
        (wider_base, f"{ID}: 0.to_k_ip.weight: expected shape [96, 96], found [192, 96]"),
        (surplus, f"{ID}: optimizer: not a key of Lynx's id layers"),
        (surplus_in_base, "wan/transformer/diffusion_pytorch_model.safetensors: blocks.0.attn2.add_k_proj.weight: "
         "surplus key, the model has no such parameter"),
        (transposed, f"{RESAMPLER}: proj_in.weight: expected shape [128, 128], found [512, 128]"),
        (scalar, f"{ID}: 0.to_k_ip.weight: expected 2 dimensions, none of size 0, found shape []"),
        (quantised, f"{REF}: 0.to_k_ref.weight: expected numbers of type F16, BF16, F32, F64, found I8"),
        (both_layouts, f"{ID}: blocks.0.cross_attn.ip_adapter.registers: fills the same parameter as 0.registers: "
         "two layouts in one file"),
        (not_json, "wan/transformer/config.json: Expecting property name enclosed in double quotes: "
         "line 1 column 2 (char 1): is {folder}wan a Wan model in diffusers layout?"),
        (no_layers, "wan/transformer/config.json: num_layers: 1000000000: expected a whole number from 1 to 1000"),
    ],
)  # fmt: skip
def test_a_well_known_mistake(files: Files, mistake: Change, expected: str) -> None:
    assert line_of(files, mistake) == expected.replace("{folder}", f"{files.folder}/")


def line_of(files: Files, mistake: Change) -> str:
    """The error's line, without the tests' folder before it."""
    weights = mistake(files) or files.weights
    with pytest.raises(CheckpointError) as error:
        load_both(weights)
    return str(error.value).removeprefix(f"{files.folder}/")


def test_a_truncated_file(files: Files) -> None:
    line = line_of(files, truncated)
    assert line.startswith(f"{ID}: not a readable safetensors file: ")  # the rest is the library's
    assert "\n" not in line


def test_a_missing_key(files: Files) -> None:
    assert line_of(files, missing) == f"{ID}: blocks.1.id_adapter.to_v_ip.bias: missing (1 missing keys in all)"


def test_a_missing_key_of_the_base(files: Files) -> None:
    expected = "diffusion_pytorch_model.safetensors: scale_shift_table: missing (1 missing keys in all)"
    assert line_of(files, missing_in_base) == f"wan/transformer/{expected}"


def test_without_a_mistake_all_load(files: Files) -> None:
    load_both(files.weights)


def load_both(weights: WeightFiles) -> None:
    load_resampler(weights.resampler, dtype=torch.float32)
    load_transformer(weights, dtype=torch.float32)


def test_a_vae_as_diffusers_saves_it_loads(demo: Path, tmp_path: Path) -> None:
    """diffusers 0.42 writes null for sizes that it derives from others."""
    folder = tmp_path / "vae"
    load_vae(demo / "wan" / "vae").save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["decoder_base_dim"] is None
    load_vae(folder)
