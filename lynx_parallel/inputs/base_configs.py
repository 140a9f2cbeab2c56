"""The supported configurations of a base model. A key that the code would ignore is refused.

Sources: the configuration classes of diffusers 0.42 and the published configurations of the Wan family (2.1: T2V, I2V,
FLF2V, VACE; 2.2: A14B, 5B, Animate). Imports neither torch nor diffusers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.model_config import read_config
from lynx_parallel.text import one_line

T2V = "Wan2.1-T2V"


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


SIZE = Rule(lambda value: type(value) is int and 1 <= value <= 10**6, "a whole number from 1 to 1000000")
OFF = only(None, supported=f"null ({T2V} has none)")
NOT_SET = only(None, False, supported=f"false ({T2V} does not use it)")

TRANSFORMER: dict[str, Rule] = {
    "_class_name": _names("WanTransformer3DModel"),
    # Sizes of pictures are multiples of 16: 8 of the VAE, 2 of the patches.
    "patch_size": only([1, 2, 2]),
    "in_channels": only(16, supported="16 (more are bases that see a picture, such as I2V, or Wan2.2-5B)"),
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
    "pos_embed_seq_len": OFF,
    "add_img_emb": NOT_SET,  # this and the next: of configurations before diffusers 0.33
    "window_size": only(None, [-1, -1]),
    "quantization_config": only(None, supported="null (weights in float32, bfloat16 or float16)"),
    "torch_dtype": ANY,  # the pipeline's dtype counts
    "dtype": ANY,
}
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
    "_class_name": only(None, "WanPipeline", "WanVideoToVideoPipeline", supported=f"WanPipeline ({T2V})"),
    "boundary_ratio": only(None, supported="null (one transformer for all steps; Wan2.2 has two)"),
    "expand_timesteps": only(None, False, supported="false (true is Wan2.2-5B)"),
    **dict.fromkeys(("transformer", "vae", "scheduler", "text_encoder", "tokenizer"), ANY),
}
"""Any other component must be ``null`` or ``[null, null]``, as diffusers writes one that is left out."""
TEXT_ENCODER: dict[str, Rule] = {
    "model_type": _names("umt5"),
    "architectures": Rule(lambda value: not value or "UMT5" in str(value), "UMT5EncoderModel"),
    "quantization_config": TRANSFORMER["quantization_config"],
}
"""transformers handles the other keys of a text encoder."""


def base_mistakes(base: Path) -> list[str]:
    """Returns one line for each key of a base that is not supported: file, key, value and what is supported.

    Files that are missing are skipped.

    Raises:
        CheckpointError: a configuration is no JSON object.
    """
    lines: list[str] = []
    index = _read(base / "model_index.json")
    if index is not None:
        lines += _mistakes(base / "model_index.json", index, MODEL_INDEX, _left_out)
    if (base / "transformer_2").is_dir() and "transformer_2" not in (index or {}):
        lines.append(f"{base / 'transformer_2'}: a second transformer (Wan2.2): not supported: {T2V} bases have one")
    configs = {}
    for part, name, rules, strict in (
        ("transformer", "config.json", TRANSFORMER, True),
        ("vae", "config.json", VAE, True),
        ("scheduler", "scheduler_config.json", SCHEDULER, True),
        ("text_encoder", "config.json", TEXT_ENCODER, False),
    ):
        path = base / part / name
        if (config := _read(path)) is None:
            continue
        configs[part] = config
        lines += _mistakes(path, config, rules, _is_null if strict else lambda _: True)
    text_dim, width = configs.get("transformer", {}).get("text_dim"), configs.get("text_encoder", {}).get("d_model")
    if isinstance(text_dim, int) and isinstance(width, int) and text_dim != width:
        path = base / "text_encoder" / "config.json"
        lines.append(f"{path}: d_model: {width}: not supported: must be {text_dim}, the transformer's text_dim")
    return lines


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
                yield f"{path}: {one_line(key)}: {_shown(value)}: not supported: {T2V} bases have no such key"
        elif rule.fits is not None and not rule.fits(value):
            yield f"{path}: {key}: {_shown(value)}: not supported: must be {rule.supported}"
    for key, rule in rules.items():
        if rule.required and key not in config:
            yield f"{path}: {key}: missing: must be {rule.supported}"


def _shown(value: Any) -> str:
    return one_line(json.dumps(value, ensure_ascii=False))[:100]
