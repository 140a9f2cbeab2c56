"""The model of ``benchmarks.gpu``: the 14B with random weights made on the device, and the sizes of each run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import torch
from diffusers import AutoencoderKLWan
from transformers import UMT5Config, UMT5EncoderModel

from benchmarks.shapes import UMT5_XXL, WAN_14B, dim_of, model_shapes
from lynx_parallel.demo import tiny
from lynx_parallel.inputs.decode_memory import VideoSize
from lynx_parallel.inputs.layout import Layout
from lynx_parallel.inputs.memory import predict
from lynx_parallel.model.attention import Attention, AttentionName, choose_kernel
from lynx_parallel.model.block import KV, BlockConditioning
from lynx_parallel.model.checkpoints import build_transformer, loaded_dtype
from lynx_parallel.model.transformer import Branch, LynxTransformer

KERNELS = tuple(name for name in get_args(AttentionName) if name != "auto")
TEXT_TOKENS, ID_TOKENS, REF_TOKENS = 512, 32, 256
"""Static keys of one branch; the ID's are 16 tokens and 16 registers."""


@dataclass(frozen=True)
class Sizes:
    """What is measured, at which size.

    Attributes:
        transformer, vae, text_encoder: configurations, as in the ``config.json`` of each.
        stored_text_encoder: of the text encoder in the generated pipeline.
        videos: width, height and frames by name.
        gemms: rows, inputs and outputs of the matrix products.
        file_bytes: size of a weights file at most.
    """

    transformer: dict[str, Any]
    vae: dict[str, Any]
    text_encoder: dict[str, Any]
    stored_text_encoder: dict[str, Any]
    videos: dict[str, tuple[int, int, int]]
    gemms: tuple[tuple[int, int, int], ...]
    file_bytes: int


_TINY_TRANSFORMER = {
    **WAN_14B, "num_attention_heads": 4, "attention_head_dim": 24, "ffn_dim": 192, "num_layers": 2, "text_dim": 64,
}  # fmt: skip
FULL = Sizes(
    transformer=WAN_14B,
    vae={"base_dim": 96, "decoder_base_dim": 96},  # all else as diffusers has it by default, which is Wan2.1's
    text_encoder={**tiny.TEXT_ENCODER, **UMT5_XXL},
    stored_text_encoder={**tiny.TEXT_ENCODER, "d_model": WAN_14B["text_dim"]},
    videos={"480p": (832, 480, 81), "720p": (1280, 720, 81)},
    gemms=((32760, 5120, 13824), (8192, 8192, 8192)),
    file_bytes=2_000_000_000,
)
TINY = Sizes(
    transformer=_TINY_TRANSFORMER,
    vae={key: value for key, value in tiny.VAE.items() if key != "_class_name"} | {"decoder_base_dim": 8},
    text_encoder=tiny.TEXT_ENCODER,
    stored_text_encoder=tiny.TEXT_ENCODER,
    videos={"480p": (48, 48, 9), "720p": (64, 48, 9)},
    gemms=((64, 48, 32), (32, 32, 32)),
    file_bytes=300_000,
)


def attention_kernel(
    name: AttentionName, device: torch.device, dtype: torch.dtype, *, need_lse: bool = False
) -> tuple[str, Attention]:
    """Returns the name and the kernel that ``choose_kernel`` chooses.

    Raises:
        ClusterError: the kernel is not available.
    """
    return choose_kernel(name, device, dtype, need_lse=need_lse)[:2]


def predicted_bytes(config: dict[str, Any], video: tuple[int, int, int]) -> int:
    """Returns the predicted peak of one branch's forward on one rank, the adapters' projections kept."""
    made = predict(
        model_shapes(config), Layout(), dtype="bfloat16", sharded=False, size=VideoSize(*video),
        heads=config["num_attention_heads"], branches=("c",),
    )  # fmt: skip
    return made.weights + made.static_kv + made.activations


def random_transformer(config: dict[str, Any], device: torch.device) -> LynxTransformer:
    """Returns the base with Lynx full's adapters, each weight drawn on the device in its final type."""
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

    adapters = {key: shape for key, shape in model_shapes(config).items() if "_adapter." in key}
    transformer = build_transformer(config, adapters)
    state = {}
    for name, empty in transformer.state_dict().items():
        dtype = loaded_dtype(name, torch.bfloat16)
        state[name] = torch.empty(empty.shape, dtype=dtype, device=device).normal_(0, 0.02)
    transformer.load_state_dict(state, strict=True, assign=True)
    transformer.rope = WanRotaryPosEmbed(
        config["attention_head_dim"], tuple(config["patch_size"]), config["rope_max_seq_len"]
    ).to(device)
    return transformer.requires_grad_(False)


def random_branch(config: dict[str, Any], device: torch.device) -> Branch:
    """Returns random static keys and values of text, ID and reference for every block."""

    def kv(tokens: int) -> KV:
        shape = (2, 1, tokens, config["num_attention_heads"], config["attention_head_dim"])
        return KV(*torch.randn(shape, device=device, dtype=torch.bfloat16))

    return [
        BlockConditioning(kv(TEXT_TOKENS), kv(ID_TOKENS), kv(REF_TOKENS)) for _ in range(config["num_layers"])
    ]  # fmt: skip


def random_vae(config: dict[str, Any], device: torch.device) -> AutoencoderKLWan:
    """Returns the VAE in fp32 as diffusers initialises it."""
    with device:
        return AutoencoderKLWan(**config).requires_grad_(False).eval()


def random_text_encoder(config: dict[str, Any], device: torch.device) -> UMT5EncoderModel:
    """Returns the text encoder in bf16, its weights drawn on the device."""
    with torch.device("meta"):
        encoder = UMT5EncoderModel(UMT5Config(**{k: v for k, v in config.items() if k != "dtype"}))
    encoder = encoder.to(torch.bfloat16).to_empty(device=device).requires_grad_(False).eval()
    for parameter in encoder.parameters():
        parameter.normal_(0, 0.02)
    return encoder


def random_inputs(config: dict[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
    """Returns text embeddings and ID tokens as the projections take them."""
    return {
        "text": torch.randn(1, TEXT_TOKENS, config["text_dim"], device=device, dtype=torch.bfloat16),
        "identity": torch.randn(1, 16, dim_of(config), device=device, dtype=torch.bfloat16),
    }


def seconds_of(
    work: Callable[[], Any], device: torch.device, *, repeats: int, warm_up: int = 1, until: float = float("inf")
) -> list[float]:
    """Returns the seconds of each repeat; the device is synchronised before and after each.

    Args:
        warm_up: calls before, which do not count.
        until: of ``time.monotonic``. No repeat but the first starts later.
    """
    found = []
    with torch.no_grad():
        for number in range(warm_up + repeats):
            if len(found) and time.monotonic() > until:
                break
            synchronize(device)
            began = time.perf_counter()
            work()
            synchronize(device)
            if number >= warm_up:
                found.append(time.perf_counter() - began)
    return found


def synchronize(device: torch.device) -> None:
    """Waits for the device's work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def reset_peak(device: torch.device) -> None:
    """Frees the allocator's cache and starts a new peak."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_of(device: torch.device) -> int | None:
    """Returns the peak of allocated bytes since ``reset_peak``, or None on the CPU."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else None


def median(seconds: list[float]) -> float:
    """Returns the median."""
    return statistics.median(seconds)
