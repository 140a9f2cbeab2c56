"""Bases of the Wan family: those that are rendered as they should be, and those that are refused, key by key."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lynx_parallel.demo import tiny
from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.base_configs import SCHEDULER, TRANSFORMER, VAE, base_mistakes, check_base
from lynx_parallel.inputs.base_parts import base_parts

# The published configurations of Wan-AI/Wan2.1-T2V-14B-Diffusers, as diffusers 0.33 wrote them.
T2V_14B: dict[str, Any] = {
    "_class_name": "WanTransformer3DModel", "_diffusers_version": "0.33.0.dev0", "_name_or_path": "wan",
    "added_kv_proj_dim": None, "attention_head_dim": 128, "cross_attn_norm": True, "eps": 1e-06, "ffn_dim": 13824,
    "freq_dim": 256, "in_channels": 16, "num_attention_heads": 40, "num_layers": 40, "out_channels": 16,
    "patch_size": [1, 2, 2], "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024, "text_dim": 4096,
}  # fmt: skip
T2V_1_3B = {**T2V_14B, "ffn_dim": 8960, "num_attention_heads": 12, "num_layers": 30}
NEWER = {**T2V_14B, "image_dim": None, "pos_embed_seq_len": None, "_diffusers_version": "0.42.1"}
OLDER = {**T2V_14B, "add_img_emb": False, "window_size": [-1, -1]}
WAN_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKLWan", "_diffusers_version": "0.33.0.dev0", "attn_scales": [], "base_dim": 96,
    "dim_mult": [1, 2, 4, 4], "dropout": 0.0, "num_res_blocks": 2, "temperal_downsample": [False, True, True],
    "z_dim": 16, "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16,
}  # fmt: skip
NEWER_VAE = {
    **WAN_VAE, "decoder_base_dim": None, "is_residual": False, "in_channels": 3, "out_channels": 3, "patch_size": None,
    "scale_factor_temporal": 4, "scale_factor_spatial": 8,
}  # fmt: skip
UNIPC: dict[str, Any] = {
    "_class_name": "UniPCMultistepScheduler", "_diffusers_version": "0.33.0.dev0", "beta_end": 0.02,
    "beta_schedule": "linear", "beta_start": 0.0001, "disable_corrector": [], "dynamic_thresholding_ratio": 0.995,
    "final_sigmas_type": "zero", "flow_shift": 3.0, "lower_order_final": True, "num_train_timesteps": 1000,
    "predict_x0": True, "prediction_type": "flow_prediction", "rescale_betas_zero_snr": False, "sample_max_value": 1.0,
    "solver_order": 2, "solver_p": None, "solver_type": "bh2", "steps_offset": 0, "thresholding": False,
    "timestep_spacing": "linspace", "trained_betas": None, "use_beta_sigmas": False, "use_exponential_sigmas": False,
    "use_flow_sigmas": True, "use_karras_sigmas": False,
}  # fmt: skip
NEWER_UNIPC = {
    **UNIPC, "use_dynamic_shifting": False, "time_shift_type": "exponential", "sigma_min": None, "sigma_max": None,
    "shift_terminal": None,
}  # fmt: skip
UMT5: dict[str, Any] = {
    "_name_or_path": "google/umt5-xxl", "architectures": ["UMT5EncoderModel"], "classifier_dropout": 0.0, "d_ff": 10240,
    "d_kv": 64, "d_model": 4096, "decoder_start_token_id": 0, "dense_act_fn": "gelu_new", "dropout_rate": 0.1,
    "eos_token_id": 1, "feed_forward_proj": "gated-gelu", "is_encoder_decoder": True, "is_gated_act": True,
    "model_type": "umt5", "num_heads": 64, "num_layers": 24, "output_past": True, "scalable_attention": True,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 256384,
    "transformers_version": "4.48.0.dev0",
}  # fmt: skip
INDEX: dict[str, Any] = {
    "_class_name": "WanPipeline", "_diffusers_version": "0.33.0.dev0",
    "scheduler": ["diffusers", "UniPCMultistepScheduler"], "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"], "transformer": ["diffusers", "WanTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
}  # fmt: skip
NEWER_INDEX = {**INDEX, "boundary_ratio": None, "expand_timesteps": False, "transformer_2": [None, None]}


def base(
    folder: Path,
    transformer: Mapping[str, Any] = T2V_14B,
    vae: Mapping[str, Any] = WAN_VAE,
    scheduler: Mapping[str, Any] = UNIPC,
    text_encoder: Mapping[str, Any] = UMT5,
    index: Mapping[str, Any] | None = INDEX,
    **more: Mapping[str, Any],
) -> Path:
    """Writes the configurations of a base."""
    named = {"transformer/config": transformer, "vae/config": vae, "text_encoder/config": text_encoder}
    named |= {"scheduler/scheduler_config": scheduler} | ({} if index is None else {"model_index": index})
    named |= {f"{part}/config": config for part, config in more.items()}
    for name, config in named.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"transformer": T2V_1_3B},
        {"transformer": NEWER, "vae": NEWER_VAE, "scheduler": NEWER_UNIPC, "index": NEWER_INDEX},
        {"transformer": OLDER, "index": None},
        {"transformer": {**NEWER, "some_later_default": None}},
        {"scheduler": {**UNIPC, "flow_shift": 5.0}, "index": {**INDEX, "_class_name": "WanVideoToVideoPipeline"}},
    ],
    ids=["14B", "1.3B", "newer diffusers", "older diffusers", "a later key that is null", "another shift"],
)
def test_what_is_rendered(tmp_path: Path, parts: dict[str, Any]) -> None:
    assert base_mistakes(base(tmp_path, **parts)) == []
    check_base(tmp_path)


def test_the_demo_is_rendered(tmp_path: Path) -> None:
    assert base_mistakes(base(tmp_path, tiny.TRANSFORMER, tiny.VAE, tiny.SCHEDULER, tiny.TEXT_ENCODER)) == []


A14B = {**NEWER_INDEX, "transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": 0.875}
I2V_INDEX = {
    **INDEX, "_class_name": "WanImageToVideoPipeline", "image_encoder": ["transformers", "CLIPVisionModel"],
    "image_processor": ["transformers", "CLIPImageProcessor"],
}  # fmt: skip
A14B_I2V = {
    **A14B, "_class_name": "WanImageToVideoPipeline", "boundary_ratio": 0.9, "image_encoder": [None, None],
    "image_processor": [None, None],
}  # fmt: skip
I2V_14B = {**T2V_14B, "in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
TWO: dict[str, dict[str, Any]] = {
    "Wan2.2-T2V-A14B": {"index": A14B, "transformer": NEWER, "transformer_2": NEWER},
    "Wan2.2-I2V-A14B": {
        "index": A14B_I2V, "transformer": {**NEWER, "in_channels": 36}, "transformer_2": {**NEWER, "in_channels": 36}
    },
    "Wan2.1-I2V-14B": {"index": I2V_INDEX, "transformer": I2V_14B,
                       "image_encoder": {"model_type": "clip_vision_model", "hidden_size": 1280}},
}  # fmt: skip


@pytest.mark.parametrize("name", TWO)
def test_bases_with_two_experts_or_a_first_frame(tmp_path: Path, name: str) -> None:
    assert base_mistakes(base(tmp_path, **TWO[name])) == []
    parts = base_parts(tmp_path)
    assert parts.boundary_ratio == {"Wan2.2-T2V-A14B": 0.875, "Wan2.2-I2V-A14B": 0.9}.get(name)
    assert parts.takes_image == ("I2V" in name)
    assert parts.encodes_image == ("image_encoder" in parts.components) == (name == "Wan2.1-I2V-14B")


def test_the_boundary_is_needed(tmp_path: Path) -> None:
    base(tmp_path, index={**A14B, "boundary_ratio": None}, transformer_2=NEWER)
    (line,) = base_mistakes(tmp_path)
    assert line.endswith("boundary_ratio: null: must be between 0 and 1: the base has two experts")
    with pytest.raises(CheckpointError, match="boundary_ratio: None: expected a number between 0 and 1"):
        base_parts(tmp_path)


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "Wan2.1-FLF2V-14B": (
        {"index": I2V_INDEX, "transformer": {**I2V_14B, "pos_embed_seq_len": 514}},
        ["this is Wan2.1-FLF2V, which is not supported: supported are Wan2.1 T2V and I2V, Wan2.2 T2V-A14B and"],
    ),
    "Wan2.1-VACE-14B": (
        {"transformer": {**NEWER, "_class_name": "WanVACETransformer3DModel", "vace_layers": [0, 5],
                         "vace_in_channels": 96}},
        ["this is a VACE model, which is not supported: "],
    ),
    "Wan2.2-TI2V-5B": (
        {"transformer": {**NEWER, "in_channels": 48, "out_channels": 48},
         "vae": {**NEWER_VAE, "z_dim": 48, "is_residual": True, "patch_size": 2, "scale_factor_spatial": 16,
                 "in_channels": 12, "out_channels": 12},
         "index": {**NEWER_INDEX, "expand_timesteps": True}},
        ["this is Wan2.2-TI2V-5B, which is not supported: "],
    ),
    "Wan2.2-Animate-14B": (
        {"transformer": {**I2V_14B, "_class_name": "WanAnimateTransformer3DModel", "motion_encoder_dim": 512}},
        ["this is Wan2.2-Animate, which is not supported: "],
    ),
    "another VAE": ({"vae": {**NEWER_VAE, "z_dim": 48, "is_residual": True}},
                    ["vae/config.json: z_dim: 48: ", "is_residual: true: "]),
    "a boundary without a second transformer": ({"index": {**INDEX, "boundary_ratio": 0.9}},
                                                ["boundary_ratio: 0.9: not supported: must be null without trans"]),
    "experts of two sizes": (
        {"index": A14B, "transformer_2": T2V_1_3B},
        ["transformer_2/config.json: num_layers: 30: must be 40, as in transformer/", "num_attention_heads: 12: "],
    ),
    "T2V with the channels of I2V": ({"transformer": {**NEWER, "in_channels": 36}},
                                     ["in_channels: 36: not supported: must be 16 (36 is for a WanImageToVideo"]),
    "I2V with the channels of T2V": ({"index": {**A14B_I2V, "transformer_2": None, "boundary_ratio": None}},
                                     ["in_channels: 16: not supported: must be 36 (latents, mask and first frame)"]),
    "an image encoder that nothing uses": (
        {"index": {**I2V_INDEX, "_class_name": "WanPipeline"}},
        ['image_encoder: ["transformers", "CLIPVisionModel"]: not supported: must be null', "image_processor: "],
    ),
    "no image encoder": (
        {"index": A14B_I2V | {"transformer_2": None, "boundary_ratio": None},
         "transformer": {**I2V_14B, "added_kv_proj_dim": 4096}},
        ["image_dim: 1280: model_index.json names no image_encoder", "added_kv_proj_dim: 4096: "],
    ),
    "an image encoder of another width": (
        {"index": I2V_INDEX, "transformer": I2V_14B, "image_encoder": {"model_type": "clip", "hidden_size": 1024}},
        ["image_encoder/config.json: hidden_size: 1024: not supported: must be 1280, the transformer's image_dim"],
    ),
    "quantised": (
        {"transformer": {**NEWER, "quantization_config": {"quant_method": "torchao"}}},
        ['quantization_config: {"quant_method": "torchao"}: not supported: must be null (weights in float32'],
    ),
    "a text encoder of another width": ({"text_encoder": {**UMT5, "d_model": 2048}},
                                        ["d_model: 2048: not supported: must be 4096"]),
    "another text encoder": ({"text_encoder": {**UMT5, "model_type": "t5", "architectures": ["T5EncoderModel"]}},
                             ["architectures: ", 'model_type: "t5": not supported: must be umt5']),
    "another scheduler": ({"scheduler": {**UNIPC, "_class_name": "FlowMatchEulerDiscreteScheduler"}},
                          ["scheduler_config.json: _class_name: "]),
    "other sigmas": ({"scheduler": {**UNIPC, "use_karras_sigmas": True, "use_dynamic_shifting": True}},
                     ["use_karras_sigmas: true: ", "use_dynamic_shifting: true: "]),
    "no flow": ({"scheduler": {"_class_name": "UniPCMultistepScheduler"}},
                ["use_flow_sigmas: missing: must be true", 'prediction_type: missing: must be "flow_prediction"']),
    "true is no number": ({"transformer": {**NEWER, "in_channels": True, "ffn_dim": True, "text_dim": "4096"}},
                          ["ffn_dim: true: ", "in_channels: true: ", 'text_dim: "4096": not supported: must be a']),
    "other norms": ({"transformer": {**NEWER, "qk_norm": "layer_norm", "patch_size": [1, 1, 1]}},
                    ["patch_size: [1, 1, 1]: ", 'qk_norm: "layer_norm": ']),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path: Path, name: str) -> None:
    parts, expected = REFUSED[name]
    lines = base_mistakes(base(tmp_path, **parts))
    assert all(line.startswith(str(tmp_path)) for line in lines)
    assert all(any(words in line for line in lines) for words in expected), lines
    assert len(lines) == len(expected), lines
    with pytest.raises(CheckpointError) as caught:
        check_base(tmp_path)
    assert str(caught.value) == lines[0]


def test_a_second_transformer_without_an_index(tmp_path: Path) -> None:
    shutil.copytree(base(tmp_path / "base", index=None) / "transformer", tmp_path / "base" / "transformer_2")
    (line,) = base_mistakes(tmp_path / "base")
    assert line == f"{tmp_path}/base/transformer_2: a second transformer, which model_index.json does not name"


@pytest.mark.parametrize(
    ("part", "key"),
    [("transformer", "new"), ("vae", "clip_output"), ("scheduler", "new"), ("index", "motion_encoder")],
)
@pytest.mark.parametrize("value", [False, 0, "x", [1]])
def test_keys_that_nobody_knows(tmp_path: Path, part: str, key: str, value: Any) -> None:
    known = {"transformer": T2V_14B, "vae": WAN_VAE, "scheduler": UNIPC, "index": INDEX}[part]
    (line,) = base_mistakes(base(tmp_path, **{part: {**known, key: value}}))  # type: ignore[arg-type]
    assert f"{key}: {json.dumps(value)}: not supported: no supported base has such a key" in line


def test_every_key_of_diffusers_is_known() -> None:
    """Fails with a diffusers that has a new key: decide whether the code honours it."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel

    for kind, rules in (
        (WanTransformer3DModel, TRANSFORMER),
        (AutoencoderKLWan, VAE),
        (UniPCMultistepScheduler, SCHEDULER),
    ):
        keys = set(inspect.signature(kind.__init__).parameters) - {"self"}
        assert keys <= rules.keys()
