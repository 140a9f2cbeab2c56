"""LoRAs in every layout: merged at load, the model is that of the unmerged computation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from torch import nn

from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.lora import read_lora
from lynx_parallel.inputs.tensor_headers import model_shapes, read_header
from lynx_parallel.inputs.weight_files import LoraFile
from lynx_parallel.model.checkpoints import load_transformer
from lynx_parallel.model.transformer import LynxTransformer
from lynx_parallel.pipeline import LynxPipeline
from lynx_parallel.stages.conditioning import ConditioningCache, reference_features
from tests.helpers.golden_cases import relative_error
from tests.helpers.lora_files import LAYOUTS, Known, make_known, wan, whole_file, write
from tests.helpers.small_renders import load, prepare, sampling
from tests.helpers.weight_files import files

WEIGHT = 0.8


@pytest.fixture(scope="module")
def plain(demo: Path) -> LynxTransformer:
    return load_transformer(files(demo), dtype=torch.float32)


@pytest.fixture(scope="module")
def state(plain: LynxTransformer) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in plain.state_dict().items()}


def merged(demo: Path, *loras: tuple[Path, float], **options: Any) -> LynxTransformer:
    weights = replace(files(demo), loras=tuple(LoraFile(path, weight) for path, weight in loras))
    return load_transformer(weights, dtype=options.pop("dtype", torch.float32), **options)


def check(transformer: LynxTransformer, state: dict[str, torch.Tensor], *changes: tuple[Known, float]) -> None:
    for key, tensor in transformer.state_dict().items():
        expected = state[key].double()
        for known, weight in changes:
            if (change := known.of(key)) is not None:
                expected = expected + weight * change.double()
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-6, msg=key)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_one_change(layout: str, demo: Path, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    known = make_known(state)
    check(merged(demo, (write(tmp_path / "lora.safetensors", LAYOUTS[layout](known)), WEIGHT)), state, (known, WEIGHT))


def test_biases_norms_modulation_embeddings_and_head(
    demo: Path, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    known = make_known(state, whole=True)
    path = write(tmp_path / "lora.safetensors", whole_file(known))
    check(merged(demo, (path, WEIGHT)), state, (known, WEIGHT))
    lora = read_lora(path, read_header(path), model_shapes(demo / "wan" / "transformer"))
    assert (lora.applied, lora.skipped) == (len(whole_file(known)), {})


def test_peft_metadata_scales(demo: Path, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    known = make_known(state, rank=4)
    for settings, factor in (
        ({"transformer.lora_alpha": 8}, 2.0),
        ({"lora_alpha": 8, "use_rslora": True}, 4.0),
        ({"transformer.lora_alpha": 4, "transformer.alpha_pattern": {"attn1.to_q": 4}}, 1.0),
    ):
        path = write(tmp_path / "lora.safetensors", LAYOUTS["diffusers"](known), settings)
        check(merged(demo, (path, WEIGHT)), state, (known, WEIGHT * factor))


def test_two_at_once_and_a_negative_weight(demo: Path, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    first, second = make_known(state), make_known(state, whole=True, rank=2, seed=1)
    paths = (
        write(tmp_path / "a.safetensors", LAYOUTS["musubi"](first)),
        write(tmp_path / "b.safetensors", whole_file(second)),
    )
    check(merged(demo, (paths[0], 1.0), (paths[1], -0.5)), state, (first, 1.0), (second, -0.5))


def test_latents_are_those_of_the_unmerged_computation(demo: Path, tmp_path: Path) -> None:
    """W·x + s·(up·(down·x)) in hooks, and s·difference on everything else; text and reference K/V included."""
    unmerged, settings = load(demo), sampling(36)
    known = make_known(unmerged.transformer.state_dict(), whole=True)
    path = write(tmp_path / "lora.safetensors", whole_file(known))
    modules, parameters = dict(unmerged.transformer.named_modules()), dict(unmerged.transformer.named_parameters())
    for name, (up, down) in known.pairs.items():
        modules[name].register_forward_hook(
            lambda module, inputs, output, up=up, down=down: (
                output + WEIGHT * nn.functional.linear(nn.functional.linear(inputs[0], down), up)
            )
        )
    for name, difference in known.differences.items():
        parameters[name].data += WEIGHT * difference
    expected = unmerged.denoise(prepare(unmerged, settings), settings)
    pipeline = loaded(demo, {"file": str(path), "weight": WEIGHT})
    made = pipeline.denoise(prepare(pipeline, settings), settings)
    assert relative_error(made, expected) <= 1e-5
    assert relative_error(made, load(demo).denoise(prepare(pipeline, settings), settings)) > 1e-3  # it does change them


def loaded(demo: Path, *loras: Any, **options: Any) -> LynxPipeline:
    names = {"resampler": "resampler", "id": "ip_layers", "ref": "ref_layers"}
    adapters = {name: demo / "full" / f"{stem}.safetensors" for name, stem in names.items()}
    return LynxPipeline.from_pretrained(demo / "wan", adapters, loras=loras, dtype=torch.float32, **options)


def test_projections_that_are_read_again_have_their_lora(demo: Path, tmp_path: Path) -> None:
    settings = sampling(36)
    known = make_known(load_transformer(files(demo), dtype=torch.float32).state_dict())
    lora = {"file": str(write(tmp_path / "lora.safetensors", LAYOUTS["ComfyUI"](known))), "weight": WEIGHT}
    kept, freed = loaded(demo, lora), loaded(demo, lora, keep_projections=False)
    for prompt in ("A person at a desk", "A person on a bridge"):
        inputs = replace(prepare(kept, settings), prompt_embeds=kept.inputs.prompt_embeds(prompt))
        assert torch.equal(kept.denoise(inputs, settings), freed.denoise(inputs, settings))


@pytest.mark.parametrize("keep_projections", [True, False])
def test_the_reference_pass_with_and_without(demo: Path, tmp_path: Path, keep_projections: bool) -> None:
    plain, settings = load(demo), sampling(36)
    known = make_known(plain.transformer.state_dict(), whole=True)
    path = write(tmp_path / "lora.safetensors", whole_file(known))
    loras = (LoraFile(path, WEIGHT),)
    inputs = prepare(plain, settings)
    expected = reference_features(plain.transformer, inputs, ConditioningCache())
    weights = replace(files(demo), loras=loras, loras_on_reference=False)
    without = load_transformer(weights, dtype=torch.float32, keep_projections=keep_projections)
    before = {key: tensor.clone() for key, tensor in without.state_dict().items() if not tensor.is_meta}
    cache = ConditioningCache()
    cache.get("text", inputs.reference_prompt_embeds, without.text_kv)  # type: ignore[arg-type]
    made = reference_features(without, inputs, cache)
    for mine, theirs in zip(made, expected, strict=True):
        assert relative_error(mine, theirs) <= 1e-6  # equal weights at other addresses: rounding differs
    after = {key: tensor for key, tensor in without.state_dict().items() if not tensor.is_meta}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], tensor) for key, tensor in after.items())
    weights = replace(weights, loras_on_reference=True)
    with_loras = load_transformer(weights, dtype=torch.float32, keep_projections=keep_projections)
    assert relative_error(reference_features(with_loras, inputs, ConditioningCache())[-1], expected[-1]) > 1e-3


def test_added_in_fp32_and_rounded_once(demo: Path, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    known = make_known(state)
    path = write(tmp_path / "lora.safetensors", LAYOUTS["ComfyUI"](known))
    transformer = merged(demo, (path, 1.0), dtype=torch.bfloat16)
    for module, (up, down) in known.pairs.items():
        expected = (state[f"{module}.weight"] + up @ down).bfloat16()
        assert torch.equal(transformer.get_parameter(f"{module}.weight"), expected)


@pytest.mark.parametrize("layout", ["ComfyUI", "diffusers", "musubi", "ai-toolkit"])
def test_diffusers_own_loader_gives_the_same_weights(
    layout: str, demo: Path, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    known = make_known(state)
    path = write(tmp_path / "lora.safetensors", LAYOUTS[layout](known))
    theirs = WanTransformer3DModel.from_pretrained(demo / "wan" / "transformer", torch_dtype=torch.float32)
    lora_state = WanPipeline.lora_state_dict(str(path))
    WanPipeline.load_lora_into_transformer(lora_state, transformer=theirs)
    theirs.fuse_lora(WEIGHT)
    theirs.unload_lora()
    ours = merged(demo, (path, WEIGHT)).state_dict()
    for key, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours[key], tensor, rtol=1e-5, atol=1e-6, msg=key)


def refused(demo: Path, path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_lora(path, read_header(path), model_shapes(demo / "wan" / "transformer"))
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_a_lora_that_does_not_fit_is_one_line(demo: Path, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    known, path = make_known(state), tmp_path / "lora.safetensors"
    key = "diffusion_model.blocks.0.self_attn.q"
    good = LAYOUTS["ComfyUI"](known)

    wider = {**good, f"{key}.lora_down.weight": torch.ones(3, 99)}
    message = refused(demo, write(path, wider))
    assert message.startswith(f"{key}.lora_down.weight: shape [3, 99], expected a change of blocks.0.attn1.to_q.weight")
    assert message.endswith("was this LoRA made for another base?")
    half = {name: tensor for name, tensor in good.items() if name != f"{key}.lora_up.weight"}
    assert refused(demo, write(path, half)) == f"{key}.lora_down.weight: its lora_up is missing"
    assert refused(demo, write(path, {**good, f"{key}.dora_scale": torch.ones(1)})) == (
        f"{key}.dora_scale: DoRA is not supported"
    )
    for kind, name in (("lokr_w1", "LoKr"), ("hada_w1_a", "LoHa")):
        assert f"{name} is not supported" in refused(demo, write(path, {f"{key}.{kind}": torch.ones(1)}))
    other = {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": torch.ones(3, 9)}
    assert refused(demo, write(path, other)).startswith("nothing in it fits this base: lora_unet_down_blocks_0")
    assert refused(demo, write(path, {})) == "nothing in it fits this base: it is empty"
    twice = {**good, f"{wan('blocks.0.attn1.to_q')}.lora_up.weight": good[f"{key}.lora_up.weight"].clone()}
    assert "the same part as" in refused(demo, write(path, twice))
    path.write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    assert "not a readable safetensors file" in refused_file(path)
    path.write_bytes(json.dumps({"a": 1}).encode())
    assert "not a readable safetensors file" in refused_file(path)


def refused_file(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    return str(caught.value)


def test_what_this_base_lacks_is_skipped_by_name(demo: Path, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """A LoRA of an I2V model, and one with other input channels: the rest is applied."""
    known = make_known(state)
    good = LAYOUTS["ComfyUI"](known)
    outputs = state["patch_embedding.weight"].shape[0]
    more = {
        "diffusion_model.blocks.0.cross_attn.k_img.lora_down.weight": torch.ones(3, 8),
        "diffusion_model.blocks.0.cross_attn.k_img.lora_up.weight": torch.ones(8, 3),
        "diffusion_model.img_emb.proj.1.diff_b": torch.ones(8),
        "diffusion_model.patch_embedding.diff": torch.ones(outputs, 36, 1, 2, 2),
        "diffusion_model.vace_blocks.0.before_proj.diff_b": torch.ones(8),
    }
    path = write(tmp_path / "lora.safetensors", good | more)
    lora = read_lora(path, read_header(path), model_shapes(demo / "wan" / "transformer"))
    assert lora.applied == len(good)
    assert {reason: len(keys) for reason, keys in lora.skipped.items()} == {
        "this base has no such part": 3,
        "made for a base with other input channels": 1,
        "not a part of Wan's transformer": 1,
    }
    assert str(lora) == f"{len(good)} of {len(good) + 5} keys change {len(known.pairs)} parameters"
    check(merged(demo, (path, WEIGHT)), state, (known, WEIGHT))


def test_a_lora_with_infinite_values_is_refused(demo: Path, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    known = make_known(state)
    damaged = LAYOUTS["ComfyUI"](known)
    damaged["diffusion_model.blocks.0.self_attn.q.lora_up.weight"][0, 0] = float("nan")
    path = write(tmp_path / "lora.safetensors", damaged)
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attn1\.to_q\.weight: a LoRA makes it infinite or NaN"):
        merged(demo, (path, 1.0))
