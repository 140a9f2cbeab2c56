"""The content of ``demo:tiny``: configurations, keys, shapes, and the size of the numbers. Data only."""

from __future__ import annotations

BLOCKS, DIM, TEXT_DIM, LITE_ID_DIM, VOCAB = 3, 96, 64, 64, 384

TRANSFORMER = {
    "_class_name": "WanTransformer3DModel",
    "patch_size": [1, 2, 2],
    "num_attention_heads": 4,
    "attention_head_dim": DIM // 4,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": TEXT_DIM,
    "freq_dim": 32,
    "ffn_dim": 2 * DIM,
    "num_layers": BLOCKS,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "image_dim": None,
    "added_kv_proj_dim": None,
    "rope_max_seq_len": 1024,
}
# latents_mean and latents_std are left to the class: they are Wan's own.
VAE = {
    "_class_name": "AutoencoderKLWan",
    "base_dim": 8,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "dropout": 0.0,
}
TEXT_ENCODER = {
    "architectures": ["UMT5EncoderModel"],
    "model_type": "umt5",
    "vocab_size": VOCAB,
    "d_model": TEXT_DIM,
    "d_kv": 16,
    "d_ff": 128,
    "num_heads": 4,
    "num_layers": 2,
    "feed_forward_proj": "gated-gelu",
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "is_encoder_decoder": True,
    "dtype": "float32",
}
SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler",
    "num_train_timesteps": 1000,
    "solver_order": 2,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
    "final_sigmas_type": "zero",
}
MODEL_INDEX = {
    "_class_name": "WanPipeline",
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
}
TOKENIZER_CONFIG = {
    # Not T5TokenizerFast: that class rebuilds its model from the vocabulary and drops the byte fallback.
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": 512,
    "clean_up_tokenization_spaces": False,
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}

# (pattern of the key, mean, spread). A spread "x/fan_in" gives x / sqrt(inputs of one output); the first
# match wins. The numbers keep every stage's output near unit size, and let text, identity and reference each
# move the result visibly: attention averages its values, so those carry more than the rest.
RULES: dict[str, tuple[tuple[str, float, str], ...]] = {
    "transformer": (
        (r"norm_[qk]\.weight|norm2\.weight", 1.0, "0.1"),
        (r"norm2\.bias", 0.0, "0"),
        (r"scale_shift_table", 0.0, "0.1"),
        (r"bias", 0.0, "0.06"),
        (r"to_v\.weight|text_embedder", 0.0, "1.8/fan_in"),
        (r"attn\d\.|patch_embedding", 0.0, "1.2/fan_in"),
        (r"", 0.0, "0.6/fan_in"),
    ),
    "vae": (
        (r"gamma", 1.0, "0"),
        (r"bias", 0.0, "0.03"),
        (r"^encoder\.conv_(in|out)", 0.0, "2/fan_in"),
        (r"^decoder\.conv_out", 0.0, "0.8/fan_in"),
        (r"^quant_conv", 0.0, "4/fan_in"),
        (r"^post_quant_conv", 0.0, "1.2/fan_in"),
        (r"", 0.0, "0.6/fan_in"),
    ),
    "text_encoder": (
        (r"norm", 1.0, "0"),
        (r"shared", 0.0, "1"),
        (r"\.q\.weight", 0.0, "0.25/fan_in"),
        (r"relative_attention_bias", 0.0, "0.12"),
        (r"", 0.0, "1/fan_in"),
    ),
    "adapters": (
        (r"registers", 0.0, "0.1"),
        (r"norm\w*\.weight", 1.0, "0.2"),
        (r"bias|layers\.\d\.1\.0", 0.0, "0.2"),
        (r"proj_in\.weight", 0.0, "20/fan_in"),  # its input, a face embedding, has length 1: 0.04 an entry
        (r"to_k_", 0.0, "1.5/fan_in"),
        (r"to_v_", 0.0, "3/fan_in"),
        (r"", 0.0, "1/fan_in"),
    ),
}


def adapter_shapes(variant: str, id_dim: int) -> dict[str, dict[str, tuple[int, ...]]]:
    """Keys and shapes of each adapter file of ``variant`` (``full`` or ``lite``), reference layout."""
    full, width, embedding, queries = variant == "full", 128, 512, 16
    resampler: dict[str, tuple[int, ...]] = {
        "latents": (1, queries, width),
        "proj_in.weight": (width, embedding),
        "proj_in.bias": (width,),
        "proj_out.weight": (id_dim, width),
        "proj_out.bias": (id_dim,),
        "norm_out.weight": (id_dim,),
        "norm_out.bias": (id_dim,),
    }
    for layer in (f"layers.{n}" for n in range(2)):
        for norm in (f"{layer}.0.norm1", f"{layer}.0.norm2", f"{layer}.1.0"):
            resampler |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
        resampler |= {
            f"{layer}.0.to_q.weight": (width, width),
            f"{layer}.0.to_kv.weight": (2 * width, width),
            f"{layer}.0.to_out.weight": (width, width),
            f"{layer}.1.1.weight": (4 * width, width),
            f"{layer}.1.3.weight": (width, 4 * width),
        }
    id_layers: dict[str, tuple[int, ...]] = {}
    ref_layers: dict[str, tuple[int, ...]] = {}
    for i in range(BLOCKS if full else (BLOCKS + 1) // 2):  # lite: one in every other block
        for kind in ("k", "v"):
            id_layers[f"{i}.to_{kind}_ip.weight"] = (DIM, id_dim)
            if full:
                id_layers[f"{i}.to_{kind}_ip.bias"] = (DIM,)
                ref_layers[f"{i}.to_{kind}_ref.weight"] = (DIM, DIM)
                ref_layers[f"{i}.to_{kind}_ref.bias"] = (DIM,)
        if full:
            id_layers[f"{i}.registers"] = (1, queries, id_dim)
    files = {"resampler": resampler, "ip_layers": id_layers}
    return files | {"ref_layers": ref_layers} if full else files
