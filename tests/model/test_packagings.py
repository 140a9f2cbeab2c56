"""A single file in every packaging: the model that the format's specification means, or one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.packaging import describe, read_packed
from lynx_parallel.inputs.weight_files import LoraFile, WeightFiles
from lynx_parallel.model.checkpoints import load_transformer
from lynx_parallel.model.transformer import LynxTransformer
from tests.helpers.golden_cases import relative_error
from tests.helpers.lora_files import LAYOUTS, make_known
from tests.helpers.lora_files import write as write_lora
from tests.helpers.packagings import PACKAGINGS, ROUNDING, write
from tests.helpers.weight_files import files

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(demo: Path) -> State:
    return load_file(demo / "wan" / "transformer" / "diffusion_pytorch_model.safetensors")


def load(weights: WeightFiles, **options: Any) -> LynxTransformer:
    return load_transformer(weights, dtype=options.pop("dtype", torch.float32), **options)


@pytest.mark.parametrize("name", PACKAGINGS)
def test_every_packaging(name: str, demo: Path, base: State, tmp_path: Path) -> None:
    file, meant = PACKAGINGS[name](base)
    weights = replace(files(demo), transformer=write(tmp_path / "model.safetensors", file))
    state = load(weights).state_dict()
    for key, tensor in meant.items():
        assert torch.equal(state[key], tensor), key
        if tensor.ndim == 2:
            assert relative_error(tensor, base[key]) <= ROUNDING[name], key
    assert state.keys() - meant.keys() == {key for key in state if "_adapter." in key}
    halves = load(weights, dtype=torch.bfloat16, keep_projections=False)
    for key, parameter in halves.named_parameters():
        if not parameter.is_meta and key in meant:
            assert torch.equal(parameter, meant[key].to(parameter.dtype)), key
    unit = halves.blocks[0]
    with halves.projections.borrowed(0, unit, "text"):
        assert torch.equal(unit.attn2.to_k.weight, meant["blocks.0.attn2.to_k.weight"].bfloat16())


def test_what_a_file_is(base: State, tmp_path: Path) -> None:
    kinds = {
        name: describe(read_packed(write(tmp_path / "model.safetensors", PACKAGINGS[name](base)[0])))
        for name in PACKAGINGS
    }
    assert kinds == {
        "fp32": "fp32", "fp16": "fp16", "bf16 with a prefix": "bf16", "fp8": "fp8_e4m3",
        "fp8 scaled, Kijai": "fp8_e4m3 scaled", "fp8 scaled, ComfyUI": "fp8_e4m3 scaled",
        "fp8 scaled by row": "fp8_e4m3 scaled", "int8, quanto": "int8 scaled",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["fp8 scaled, Kijai", "fp8 scaled by row", "int8, quanto"])
def test_a_lora_is_added_to_dequantised_weights(name: str, demo: Path, base: State, tmp_path: Path) -> None:
    file, meant = PACKAGINGS[name](base)
    known = make_known(base)
    lora = LoraFile(write_lora(tmp_path / "lora.safetensors", LAYOUTS["ComfyUI"](known)), 0.5)
    weights = replace(files(demo), transformer=write(tmp_path / "model.safetensors", file), loras=(lora,))
    state = load(weights).state_dict()
    for module, (up, down) in known.pairs.items():
        expected = meant[f"{module}.weight"] + 0.5 * up @ down
        torch.testing.assert_close(state[f"{module}.weight"], expected, rtol=1e-6, atol=1e-6)


def combined(demo: Path, *, int8: bool) -> tuple[State, State]:
    """WanGP's file of both adapters, and the parameters that it stands for."""
    full, file, meant = demo / "full", {}, {}
    for stem, attention, adapter in (
        ("ip_layers", "cross_attn", "id_adapter"),
        ("ref_layers", "self_attn", "ref_adapter"),
    ):
        for key, tensor in load_file(full / f"{stem}.safetensors").items():
            number, _, parameter = key.partition(".")
            name, target = f"blocks.{number}.{attention}.{parameter}", f"blocks.{number}.{adapter}.{parameter}"
            if int8 and parameter.endswith(".weight"):
                scale = (tensor.abs().amax(dim=1, keepdim=True) / 127).bfloat16()
                data = (tensor / scale.float()).round().clamp(-127, 127).to(torch.int8)
                file |= {f"{name}._data": data, f"{name}._scale": scale}
                meant[target] = data.float() * scale.float()
            else:
                file[name] = tensor.bfloat16()
                meant[target] = file[name].float()
    return file, meant


@pytest.mark.parametrize("int8", [False, True])
def test_one_file_with_both_adapters(demo: Path, tmp_path: Path, int8: bool) -> None:
    file, meant = combined(demo, int8=int8)
    path = write(tmp_path / "lynx.safetensors", file)
    state = load(replace(files(demo), id=path, ref=path)).state_dict()
    assert meant.keys() == {key for key in state if "_adapter." in key}
    for key, tensor in meant.items():
        assert torch.equal(state[key], tensor), key


def refused(demo: Path, path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(replace(files(demo), transformer=path))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_what_cannot_be_loaded_is_one_line(demo: Path, base: State, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    name = "blocks.0.self_attn.q"
    scaled = PACKAGINGS["fp8 scaled, Kijai"](base)[0]

    def without(key: str) -> State:
        return {other: tensor for other, tensor in scaled.items() if other != key}

    assert refused(demo, write(path, without(f"{name}.scale_weight"))) == (
        f"{name}.weight: its scale is missing, found F8_E4M3"
    )
    assert "a scale without its tensor" in refused(demo, write(path, without(f"{name}.weight")))
    wrong = {**scaled, f"{name}.scale_weight": torch.ones(7)}
    assert "this kind of scale is not supported" in refused(demo, write(path, wrong))
    int8 = PACKAGINGS["int8, quanto"](base)[0]
    lost = {key: tensor for key, tensor in int8.items() if key != f"{name}.weight._scale"}
    assert "expected numbers of type" in refused(demo, write(path, lost))
    assert "nvfp4, which is not supported" in refused(
        demo, write(path, {**scaled, f"{name}.weight_scale_2": torch.ones(1)})
    )
    missing = {key: tensor for key, tensor in PACKAGINGS["fp16"](base)[0].items() if key != f"{name}.bias"}
    assert refused(demo, write(path, missing)) == "blocks.0.attn1.to_q.bias: missing (1 missing keys in all)"
    more = {**PACKAGINGS["fp16"](base)[0], "blocks.0.cross_attn.k_img.weight": torch.ones(3, 3)}
    assert "surplus key" in refused(demo, write(path, more))
    path.write_bytes(b"GGUF" + b"\0" * 60)
    assert refused(demo, path).startswith("GGUF is not supported")
    path.write_bytes(path.read_bytes()[:2])
    assert "not a readable safetensors file" in refused(demo, path)
