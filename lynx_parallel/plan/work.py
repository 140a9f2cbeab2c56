"""The arithmetic of a shot: forwards of the transformer and their floating-point operations.

Imports neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lynx_parallel.inputs.decode_memory import VideoSize
from lynx_parallel.inputs.guidance import inside_window, sampling_coefficients
from lynx_parallel.inputs.memory import ID_TOKENS, REF_TOKENS, TEXT_TOKENS
from lynx_parallel.inputs.model_config import transformer_config
from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.plan.parts import Part
from lynx_parallel.plan.plan import Item

WAN_14B: Mapping[str, Any] = {"num_layers": 40, "num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824}
"""Sizes of the transformers of Wan2.1 and Wan2.2 with 14 billion parameters."""
_DECISIVE = (
    "width", "height", "num_frames", "num_inference_steps", "guidance_scale", "guidance_scale_i", "ip_scale",
    "ref_scale", "identity_window",
)  # fmt: skip
"""Settings that decide the work of a shot."""
ENCODING = 0.02
"""Work of encoding saved latents, as a part of the shot's work. An estimate."""


def forwards(sampling: Sampling, *, has_reference: bool) -> int:
    """Returns how often a shot's denoising runs a transformer: steps times guidance branches."""
    steps = sampling.num_inference_steps
    inside = [inside_window(step, steps, sampling.identity_window) for step in range(steps)]
    branches = {
        acts: len(sampling_coefficients(sampling, has_reference=has_reference, inside=acts)) for acts in (True, False)
    }
    return sum(branches[acts] for acts in inside)


def forward_flops(config: Mapping[str, Any], tokens: int) -> float:
    """Returns the floating-point operations of one forward, with a multiplication and an addition as two.

    With N tokens, C channels, F of the feed-forward and K static keys (text, ID, reference), a block takes
    2·N·(6·C² + 2·C·F) for its matrix products, 4·N²·C for self-attention and 4·N·K·C for cross-attention.

    Args:
        config: diffusers' configuration of the transformer.
    """
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    products = 2 * tokens * (6 * dim**2 + 2 * dim * config["ffn_dim"])
    attention = 4 * tokens * (tokens + TEXT_TOKENS + ID_TOKENS + REF_TOKENS) * dim
    return float(config["num_layers"] * (products + attention))


def shot_flops(sampling: Sampling, config: Mapping[str, Any], *, has_reference: bool) -> float:
    """Returns the floating-point operations of a shot's denoising."""
    tokens = VideoSize(sampling.width, sampling.height, sampling.num_frames).tokens
    return forwards(sampling, has_reference=has_reference) * forward_flops(config, tokens)


def work_key(sampling: Sampling) -> tuple[Any, ...]:
    """Returns the settings that decide the work of a shot. Many shots share them, whatever their seeds."""
    return (*(getattr(sampling, name) for name in _DECISIVE),)


def config_of(part: Part) -> Mapping[str, Any]:
    """Returns the sizes of the transformer; those of the 14B if its configuration is not on this machine."""
    folder = part.weights.base / "transformer"
    return transformer_config(part.weights) if folder.is_dir() else WAN_14B


def costs(parts: Iterable[Part], todo: Iterable[Item]) -> dict[str, float]:
    """Returns the work of each shot that is to be made, by name: operations of its denoising, less if it is encoded."""
    todo, found = list(todo), dict[str, float]()
    for part in parts:
        if not part.of(todo):
            continue
        config, has_reference = config_of(part), part.weights.ref is not None
        known: dict[tuple[Any, ...], float] = {}  # there are many shots of the same size
        for item in part.of(todo):
            sampling = item.shot.sampling
            if (key := work_key(sampling)) not in known:
                known[key] = shot_flops(sampling, config, has_reference=has_reference)
            found[item.shot.name] = known[key] * (ENCODING if item.action == "encode" else item.share)
    return found
