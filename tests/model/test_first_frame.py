"""The first frame of an I2V base: how the picture is fitted, what the model gets, and how much room it takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file

from benchmarks.shapes import WAN_14B
from lynx_parallel.inputs.memory import static_kv_bytes
from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.inputs.weight_files import LoraFile
from lynx_parallel.model.checkpoints import build_transformer
from lynx_parallel.pipeline import LynxPipeline
from lynx_parallel.stages.first_frame import encode_first_frame, fit
from lynx_parallel.stages.latents import decode
from tests.helpers.lora_files import write as write_lora
from tests.helpers.packagings import PACKAGINGS
from tests.helpers.packagings import write as write_single
from tests.helpers.tiny_bases import first_frame, load_tiny, prepare_tiny, weights_of, write_base

SAMPLING = Sampling(width=80, height=48, num_frames=9, num_inference_steps=1)


@pytest.fixture(scope="module")
def base(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "I2V", demo, "I2V")


@pytest.fixture(scope="module")
def pipeline(base: Path, demo: Path) -> LynxPipeline:
    return load_tiny(base, demo)


def test_a_picture_is_scaled_to_cover_and_cut_in_the_middle() -> None:
    picture = np.zeros((100, 400, 3), np.uint8)
    picture[:, 100:300] = (200, 0, 0)  # the middle half
    made = fit(picture, 80, 40)
    assert made.shape == (40, 80, 3)
    assert (made[..., 0] > 150).all()
    tall = np.zeros((400, 100, 3), np.uint8)
    tall[175:225] = (0, 200, 0)
    assert (fit(tall, 80, 40)[1:-1, :, 1] > 150).all()
    same = np.zeros((40, 80, 3), np.uint8)
    assert fit(same, 80, 40) is same


def test_mask_and_latents(pipeline: LynxPipeline) -> None:
    start = encode_first_frame(pipeline.vae, first_frame(), 9)
    assert start.shape == (1, 20, 3, 6, 10)
    assert (start[:, :4, 0] == 1).all()
    assert (start[:, :4, 1:] == 0).all()
    other = encode_first_frame(pipeline.vae, 255 - first_frame(), 9)
    assert not torch.equal(start[:, 4:, 0], other[:, 4:, 0])


def test_what_is_missing_or_too_much(pipeline: LynxPipeline, base: Path, demo: Path) -> None:
    person = pipeline.identify(
        SAMPLING, image=np.zeros((300, 300, 3), np.uint8), embedding=np.ones(512, np.float32),
        landmarks=[[100, 120], [200, 120], [150, 160], [110, 200], [190, 200]],
    )  # fmt: skip
    with pytest.raises(ValueError, match="this base begins with a picture: give start_image"):
        pipeline.prepare("a", SAMPLING, person)
    plain = LynxPipeline.from_pretrained(
        demo / "wan", {"ref": demo / "full" / "ref_layers.safetensors"}, dtype=torch.float32
    )
    with pytest.raises(ValueError, match="this base takes no start_image"):
        plain.prepare("a", SAMPLING, person, start_image=first_frame())


def test_the_embedding_is_made_once_for_each_picture(
    pipeline: LynxPipeline, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    from lynx_parallel.stages import first_frame as module

    encode = module.encode_image
    monkeypatch.setattr(module, "encode_image", lambda *a, **k: calls.append(1) or encode(*a, **k))
    inputs = [prepare_tiny(pipeline, base, SAMPLING) for _ in range(2)]
    assert len(calls) <= 1
    assert inputs[0].image_embeds is not None
    assert torch.equal(inputs[0].image_embeds, inputs[1].image_embeds)
    assert inputs[0].image_embeds.shape == (1, 257, 32)
    assert inputs[0].id_tokens is None


def test_static_keys_and_values_take_what_is_predicted(pipeline: LynxPipeline, base: Path) -> None:
    phase = pipeline.phase(prepare_tiny(pipeline, base, SAMPLING), SAMPLING)
    held = {id(t): t for branch in phase.branches.values() for block in branch for kv in
            (block.text, block.image, block.reference, block.identity) if kv for t in kv}  # fmt: skip
    shapes = {key: tuple(value.shape) for key, value in pipeline.transformer.state_dict().items()}
    assert sum(t.nbytes for t in held.values()) == static_kv_bytes(shapes, "ciu", 4)
    assert any("add_k_proj" in key for key in shapes)


@pytest.mark.parametrize(
    "changes",
    [{"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}, {"in_channels": 36}],
    ids=["2.1", "2.2"],
)
def test_true_shapes(changes: dict[str, int]) -> None:
    """Of Wan2.1 and Wan2.2 I2V: the same keys and shapes as diffusers' model."""
    config = {**WAN_14B, **changes}
    with torch.device("meta"):
        theirs = WanTransformer3DModel.from_config(config).state_dict()
    ours = build_transformer(config, {}).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    assert ours["patch_embedding.weight"].shape == (5120, 36, 1, 2, 2)


def test_a_lora_and_a_single_file_with_the_parts_of_i2v(base: Path, demo: Path, tmp_path: Path) -> None:
    """Names of k_img, v_img, norm_k_img and img_emb, in a LoRA of all modules and in a transformer of Wan's names."""
    path = base / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    generator = torch.Generator().manual_seed(0)
    pairs = {
        "blocks.0.cross_attn.k_img": "blocks.0.attn2.add_k_proj",
        "blocks.2.cross_attn.v_img": "blocks.2.attn2.add_v_proj",
        "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    }
    lora, expected = {}, {}
    for wan, ours in pairs.items():
        weight = state[f"{ours}.weight"]
        down = torch.randn(3, weight.shape[1], generator=generator)
        up = torch.randn(weight.shape[0], 3, generator=generator)
        lora |= {f"diffusion_model.{wan}.lora_down.weight": down, f"diffusion_model.{wan}.lora_up.weight": up}
        expected[f"{ours}.weight"] = weight + 0.5 * up @ down
    norm = "blocks.1.attn2.norm_added_k.weight"
    lora["diffusion_model.blocks.1.cross_attn.norm_k_img.diff"] = torch.ones_like(state[norm])
    expected[norm] = state[norm] + 0.5
    write_lora(tmp_path / "lora.safetensors", lora)
    weights = weights_of(base, demo)
    files = replace(weights, loras=(LoraFile(tmp_path / "lora.safetensors", 0.5),))
    merged = LynxPipeline.from_files(files, dtype=torch.float32).transformer.state_dict()
    for key, tensor in expected.items():
        torch.testing.assert_close(merged[key], tensor)
    write_single(tmp_path / "model.safetensors", PACKAGINGS["fp32"](state)[0])
    made = []
    for files in (weights, replace(weights, transformer=tmp_path / "model.safetensors")):
        one = LynxPipeline.from_files(files, dtype=torch.float32)
        made.append(one.denoise(prepare_tiny(one, base, SAMPLING), SAMPLING))
    assert torch.equal(*made)


def test_frames_come_out(pipeline: LynxPipeline, base: Path) -> None:
    latents = pipeline.denoise(prepare_tiny(pipeline, base, SAMPLING), SAMPLING)
    assert latents.shape == (1, 16, 3, 6, 10)
    assert decode(pipeline.vae, latents).shape == (1, 3, 9, 48, 80)
