"""The supported configurations of a base model. A key that the code would ignore is refused.

Sources: the configuration classes of diffusers 0.42 and the published configurations of the Wan family (2.1: T2V, I2V,
FLF2V, VACE; 2.2: A14B, 5B, Animate). Imports neither torch nor diffusers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.base_parts import IMAGE_TO_VIDEO, names
from lynx_parallel.inputs.model_config import read_config
from lynx_parallel.inputs.weight_files import COMPONENTS, IMAGE_PARTS, SECOND_EXPERT
from lynx_parallel.text import one_line

SUPPORTED = "Wan2.1 T2V and I2V, Wan2.2 T2V-A14B and I2V-A14B"


@dataclass(frozen=True)
class Rule:
    """The supported values of a key.

    Attributes:
        fits: whether a value is supported; None accepts any.
        supported: the supported values, in words.
        required: whether the key must be there, because diffusers' default is not supported.
    """

    fits: Callable[[Any], bool] | None = None
    supported: str = ""
    required: bool = False


ANY = Rule()
"""Any value is supported, is checked elsewhere, or changes nothing."""


def only(*values: Any, supported: str = "", required: bool = False) -> Rule:
    """Returns a rule that accepts these values. Types count too: 1 is not true."""
    known = [json.dumps(value) for value in values]
    return Rule(lambda value: json.dumps(value) in known, supported or " or ".join(known), required)


def _names(*names: str) -> Rule:
    return only(None, *names, supported=" or ".join(names))


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value <= 10**6


SIZE = Rule(_is_size, "a whole number from 1 to 1000000")
OFF = only(None, supported="null (only Wan2.1 I2V has one)")
NOT_SET = only(None, False, supported="false")

TRANSFORMER: dict[str, Rule] = {
    "_class_name": _names("WanTransformer3DModel"),
    # Sizes of pictures are multiples of 16: 8 of the VAE, 2 of the patches.
    "patch_size": only([1, 2, 2]),
    "in_channels": only(16, supported="16 (36 is for a WanImageToVideoPipeline)"),
    "out_channels": only(16, None),
    "num_attention_heads": ANY,
    "attention_head_dim": ANY,
    "text_dim": SIZE,
    "freq_dim": SIZE,
    "ffn_dim": SIZE,
    "num_layers": ANY,
    "eps": ANY,
    "rope_max_seq_len": ANY,
    "cross_attn_norm": only(True, False),
    "qk_norm": only("rms_norm_across_heads"),
    "image_dim": OFF,
    "added_kv_proj_dim": OFF,
    "pos_embed_seq_len": only(None),
    "add_img_emb": NOT_SET,  # this and the next: of configurations before diffusers 0.33
    "window_size": only(None, [-1, -1]),
    "quantization_config": only(None, supported="null (weights in float32, bfloat16 or float16)"),
    "torch_dtype": ANY,  # the pipeline's dtype counts
    "dtype": ANY,
}
TRANSFORMER_I2V = {
    **TRANSFORMER,
    "in_channels": only(36, supported="36 (latents, mask and first frame)", required=True),
    "image_dim": Rule(lambda value: value is None or _is_size(value), "null or a whole number"),
    "added_kv_proj_dim": Rule(lambda value: value is None or _is_size(value), "null or a whole number"),
}
"""Rules of a base that begins with a picture. Wan2.1 I2V also sees the picture's CLIP embedding."""
VAE: dict[str, Rule] = {
    "_class_name": _names("AutoencoderKLWan"),
    "base_dim": ANY,
    "decoder_base_dim": ANY,
    "z_dim": only(16, supported="16 (48 is the VAE of Wan2.2-5B)"),
    "dim_mult": Rule(
        lambda value: value is None or (isinstance(value, list) and len(value) == 4), "four numbers (stride 8)"
    ),
    "num_res_blocks": ANY,
    "attn_scales": only(None, []),
    "temperal_downsample": only(None, [False, True, True]),
    "dropout": ANY,  # of training
    "latents_mean": ANY,
    "latents_std": ANY,
    "is_residual": only(None, False),
    "in_channels": only(None, 3),
    "out_channels": only(None, 3),
    "patch_size": only(None),
    "scale_factor_temporal": only(None, 4),
    "scale_factor_spatial": only(None, 8),
    "quantization_config": TRANSFORMER["quantization_config"],
    "torch_dtype": ANY,  # model.vae_dtype counts
    "dtype": ANY,
}
_NO_FLOW = only(None, False, supported="false (it would replace the flow-matching sigmas)")
SCHEDULER: dict[str, Rule] = {
    "_class_name": only("UniPCMultistepScheduler", required=True),
    "use_flow_sigmas": only(True, required=True),
    "prediction_type": only("flow_prediction", required=True),
    "use_karras_sigmas": _NO_FLOW,
    "use_exponential_sigmas": _NO_FLOW,
    "use_beta_sigmas": _NO_FLOW,
    "use_dynamic_shifting": only(None, False, supported="false (sampling.flow_shift is the shift)"),
    "solver_p": only(None),
    # diffusers' UniPC honours these, and sampling.flow_shift replaces flow_shift.
    **dict.fromkeys(
        ("num_train_timesteps", "solver_order", "solver_type", "predict_x0", "lower_order_final", "disable_corrector",
         "final_sigmas_type", "thresholding", "dynamic_thresholding_ratio", "sample_max_value", "shift_terminal",
         "flow_shift"),
        ANY,
    ),
    # These act without flow-matching sigmas or with dynamic shifting only.
    **dict.fromkeys(
        ("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr", "timestep_spacing",
         "steps_offset", "sigma_min", "sigma_max", "time_shift_type"),
        ANY,
    ),
}  # fmt: skip
MODEL_INDEX: dict[str, Rule] = {
    "_class_name": only(
        None, "WanPipeline", "WanVideoToVideoPipeline", IMAGE_TO_VIDEO, supported=f"WanPipeline or {IMAGE_TO_VIDEO}"
    ),
    "boundary_ratio": ANY,
    SECOND_EXPERT: ANY,
    "expand_timesteps": NOT_SET,
    **dict.fromkeys(("transformer", "vae", "scheduler", "text_encoder", "tokenizer"), ANY),
}
"""Any other component must be ``null`` or ``[null, null]``, as diffusers writes one that is left out."""
TEXT_ENCODER: dict[str, Rule] = {
    "model_type": _names("umt5"),
    "architectures": Rule(lambda value: not value or "UMT5" in str(value), "UMT5EncoderModel"),
    "quantization_config": TRANSFORMER["quantization_config"],
}
"""transformers handles the other keys of a text encoder."""
IMAGE_ENCODER: dict[str, Rule] = {"model_type": _names("clip_vision_model", "clip")}
_SIZES = (
    "num_layers",
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "text_dim",
    "image_dim",
    "patch_size",
)
"""Keys in which two experts must agree."""
_FILES = {
    **dict.fromkeys(("transformer", SECOND_EXPERT, "vae", "text_encoder", "image_encoder"), "config.json"),
    "scheduler": "scheduler_config.json",
}
"""Configuration file of each part."""


def base_mistakes(base: Path) -> list[str]:
    """Returns one line for each key of a base that is not supported: file, key, value and what is supported.

    Files that are missing are skipped.

    Raises:
        CheckpointError: a configuration is no JSON object.
    """
    lines: list[str] = []
    index_path = base / "model_index.json"
    index = _read(index_path)
    configs = {part: config for part in _FILES if (config := _read(base / part / _FILES[part])) is not None}
    if other := _other_family(index or {}, configs):
        return [f"{base}: this is {other}, which is not supported: supported are {SUPPORTED}"]
    index = index or {}
    takes_image = index.get("_class_name") == IMAGE_TO_VIDEO
    image_parts = {} if takes_image else dict.fromkeys(IMAGE_PARTS, OFF)
    lines += _mistakes(index_path, index, {**MODEL_INDEX, **dict.fromkeys(IMAGE_PARTS, ANY), **image_parts}, _left_out)
    lines += _expert_mistakes(base, index, configs)
    transformer = TRANSFORMER_I2V if takes_image else TRANSFORMER
    rules = {"transformer": transformer, SECOND_EXPERT: transformer, "vae": VAE, "scheduler": SCHEDULER,
             "text_encoder": TEXT_ENCODER, "image_encoder": IMAGE_ENCODER}  # fmt: skip
    for part, config in configs.items():
        if part in COMPONENTS or names(index, part):
            unknown_fits = (lambda _: True) if part.endswith("_encoder") else _is_null
            lines += _mistakes(base / part / _FILES[part], config, rules[part], unknown_fits)
    return [*lines, *_width_mistakes(base, index, configs)]


def _other_family(index: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the name of a base of the Wan family that is not supported, or nothing."""
    transformer = configs.get("transformer", {})
    classes = f"{index.get('_class_name')} {transformer.get('_class_name')}"
    if index.get("expand_timesteps") or transformer.get("in_channels") == 48:
        return "Wan2.2-TI2V-5B"
    if "VACE" in classes or "vace_layers" in transformer:
        return "a VACE model"
    if "Animate" in classes:
        return "Wan2.2-Animate"
    return "Wan2.1-FLF2V" if transformer.get("pos_embed_seq_len") else ""


def _expert_mistakes(base: Path, index: Mapping[str, Any], configs: Mapping[str, Any]) -> Iterator[str]:
    """Compares the two experts of a base, if it has two."""
    index_path, ratio = base / "model_index.json", index.get("boundary_ratio")
    if not names(index, SECOND_EXPERT):
        if SECOND_EXPERT in configs:
            yield f"{base / SECOND_EXPERT}: a second transformer, which model_index.json does not name"
        if ratio is not None:
            yield f"{index_path}: boundary_ratio: {_shown(ratio)}: not supported: must be null without transformer_2"
        return
    if not isinstance(ratio, int | float) or not 0 < ratio < 1:
        yield f"{index_path}: boundary_ratio: {_shown(ratio)}: must be between 0 and 1: the base has two experts"
    first, second = configs.get("transformer"), configs.get(SECOND_EXPERT)
    if first is None or second is None:
        return
    for key in _SIZES:
        if first.get(key) != second.get(key):
            path = base / SECOND_EXPERT / "config.json"
            yield f"{path}: {key}: {_shown(second.get(key))}: must be {_shown(first.get(key))}, as in transformer/"


def _width_mistakes(base: Path, index: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Compares the widths of encoders with what the transformer takes."""
    transformer = configs.get("transformer", {})
    for part, key, wanted in (("text_encoder", "d_model", "text_dim"), ("image_encoder", "hidden_size", "image_dim")):
        width, expected = configs.get(part, {}).get(key), transformer.get(wanted)
        if isinstance(width, int) and isinstance(expected, int) and width != expected:
            path = base / part / "config.json"
            yield f"{path}: {key}: {width}: not supported: must be {expected}, the transformer's {wanted}"
    path, image_dim = base / "transformer" / "config.json", transformer.get("image_dim")
    if image_dim is not None and not names(index, "image_encoder"):
        yield f"{path}: image_dim: {_shown(image_dim)}: model_index.json names no image_encoder"
    inner = _product(transformer.get("num_attention_heads"), transformer.get("attention_head_dim"))
    wanted_dim = None if image_dim is None else inner
    if (found := transformer.get("added_kv_proj_dim")) != wanted_dim and transformer.get("in_channels") == 36:
        yield f"{path}: added_kv_proj_dim: {_shown(found)}: not supported: must be {_shown(wanted_dim)}"


def _product(*values: Any) -> int | None:
    return prod(values) if all(isinstance(value, int) for value in values) else None


def check_base(base: Path) -> None:
    """Refuses a base that the code would not honour.

    Raises:
        CheckpointError: the first line of ``base_mistakes``.
    """
    if lines := base_mistakes(base):
        raise CheckpointError(lines[0])


def _read(path: Path) -> dict[str, Any] | None:
    return read_config(path) if path.exists() else None


def _is_null(value: Any) -> bool:
    """Returns whether an unknown key is unset. diffusers writes its defaults as null."""
    return value is None


def _left_out(value: Any) -> bool:
    return value is None or value == [None, None]


def _mistakes(
    path: Path, config: Mapping[str, Any], rules: Mapping[str, Rule], unknown_fits: Callable[[Any], bool]
) -> Iterator[str]:
    for key, value in config.items():
        rule = rules.get(key)
        if rule is None:
            if not key.startswith("_") and not unknown_fits(value):  # "_" begins diffusers' own notes: version, origin
                yield f"{path}: {one_line(key)}: {_shown(value)}: not supported: no supported base has such a key"
        elif rule.fits is not None and not rule.fits(value):
            yield f"{path}: {key}: {_shown(value)}: not supported: must be {rule.supported}"
    for key, rule in rules.items():
        if rule.required and key not in config:
            yield f"{path}: {key}: missing: must be {rule.supported}"


def _shown(value: Any) -> str:
    return one_line(json.dumps(value, ensure_ascii=False))[:100]
