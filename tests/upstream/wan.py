"""The Wan2.1 transformer with Lynx's two branches, as plain functions over the files' own tensors.

Shapes:
    B  batch (1)                    H  heads
    L  tokens of the video          E  channels of one head
    S  tokens of the prompt (512)   D  channels of the model, H * E
    N  ID tokens (16, or 32 with registers)
    R  reference tokens (256)       C  channels of the latent (16), or with a first frame 36
    I  image tokens (257)
    T, Y, X  the latent's frames, rows and columns; t, y, x the same counted in patches
Weights keep the names of the files: `scope` walks down them as `.` does in a module tree.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

Weights = dict[str, Tensor]

ROPE_THETA = 10000.0
LITE_KEY_EPS = 1e-5
IMAGE_EPS = 1e-5
KEPT_FP32 = {"time_embedder", "scale_shift_table", "norm2"}
"""Weights that stay in fp32 in a bf16 model, as in diffusers. Norms without weights are computed in fp32 too."""


@dataclass(frozen=True)
class Wan:
    """The base model: its tensors and the few numbers its shapes do not tell."""

    weights: Weights
    heads: int
    blocks: int
    patch: tuple[int, int, int]
    freq_dim: int
    eps: float


@dataclass(frozen=True)
class Identity:
    """What one forward sees of the subject. Empty `*_layers` mean that the branch does not exist.

    `id_layers` and `ref_layers` map a block's number to the adapter's tensors in that block.
    """

    id_tokens_BND: Tensor | None = None
    id_layers: dict[int, Weights] = field(default_factory=dict)
    id_scale: float = 1.0
    ref_features_BRD: list[Tensor] = field(default_factory=list)
    ref_layers: dict[int, Weights] = field(default_factory=dict)
    ref_scale: float | None = None
    image_BId: Tensor | None = None
    """CLIP embedding of the first frame, for a base that sees one."""


NOBODY = Identity()


def load_wan(folder: Path, dtype: torch.dtype = torch.float32) -> Wan:
    """Reads `folder`, the `transformer` part of a diffusers-layout Wan: one file or many."""

    def kept(name: str) -> bool:
        return bool(KEPT_FP32 & set(name.split(".")))

    config = json.loads((folder / "config.json").read_text())
    weights: Weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors = load_file(file).items()
        weights |= {name: tensor.float() if kept(name) else tensor.to(dtype) for name, tensor in tensors}
    return Wan(
        weights=weights,
        heads=config["num_attention_heads"],
        blocks=config["num_layers"],
        patch=tuple(config["patch_size"]),
        freq_dim=config["freq_dim"],
        eps=config["eps"],
    )


def forward(
    wan: Wan, latents_BCTYX: Tensor, timestep: int, text_BSd: Tensor, identity: Identity = NOBODY
) -> tuple[Tensor, list[Tensor]]:
    """One pass through the model.

    Returns the velocity, shaped as the latents, and for every block the input of its self-attention
    [B, L, D]: of a pass over the face these are the reference features.
    """
    grid_tyx = tuple(size // step for size, step in zip(latents_BCTYX.shape[2:], wan.patch, strict=True))
    turn_LE = rotation(grid_tyx, wan.weights["patch_embedding.weight"].shape[0] // wan.heads)
    time_BD, modulation_B6D = embed_time(wan, timestep)
    text_BSD = embed_text(wan, text_BSd)
    if identity.image_BId is not None:
        identity = replace(identity, image_BId=embed_image(wan, identity.image_BId))
    x_BLD = patchify(wan, latents_BCTYX)
    attention_inputs_BLD = []
    for index in range(wan.blocks):
        x_BLD, attention_input_BLD = block(wan, index, x_BLD, text_BSD, modulation_B6D, turn_LE, identity)
        attention_inputs_BLD.append(attention_input_BLD)
    return unpatchify(wan, project_out(wan, x_BLD, time_BD), grid_tyx), attention_inputs_BLD


def block(
    wan: Wan,
    index: int,
    x_BLD: Tensor,
    text_BSD: Tensor,
    modulation_B6D: Tensor,
    turn_LE: Tensor,
    identity: Identity,
) -> tuple[Tensor, Tensor]:
    """Self-attention, cross-attention, feed-forward; returns x and the input of the self-attention."""
    w = scope(wan.weights, f"blocks.{index}")
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (w["scale_shift_table"] + modulation_B6D).split(1, 1)

    attention_input_BLD = layer_norm(x_BLD, wan.eps) * (1 + scale) + shift
    x_BLD = (x_BLD + gate * self_attention(wan, index, attention_input_BLD, turn_LE, identity)).type_as(x_BLD)

    normed_BLD = layer_norm(x_BLD, wan.eps, scope(w, "norm2"))
    x_BLD = x_BLD + cross_attention(wan, index, normed_BLD, text_BSD, identity)

    normed_BLD = layer_norm(x_BLD, wan.eps) * (1 + ffn_scale) + ffn_shift
    x_BLD = (x_BLD + ffn_gate * feed_forward(scope(w, "ffn.net"), normed_BLD)).type_as(x_BLD)
    return x_BLD, attention_input_BLD


def self_attention(wan: Wan, index: int, x_BLD: Tensor, turn_LE: Tensor, identity: Identity) -> Tensor:
    """Video attends to video; beside it, by the same query, to the reference picture."""
    w = scope(wan.weights, f"blocks.{index}.attn1")
    q_BLHE = heads(wan, rms_norm(linear(w, "to_q", x_BLD), wan.eps, w["norm_q.weight"]))
    k_BLHE = heads(wan, rms_norm(linear(w, "to_k", x_BLD), wan.eps, w["norm_k.weight"]))
    v_BLHE = heads(wan, linear(w, "to_v", x_BLD))
    out_BLD = attend(rotate(q_BLHE, turn_LE), rotate(k_BLHE, turn_LE), v_BLHE)

    if index in identity.ref_layers:
        adapter, features_BRD = identity.ref_layers[index], identity.ref_features_BRD[index]
        k_BRHE = heads(wan, rms_norm(linear(adapter, "to_k_ref", features_BRD), wan.eps, w["norm_k.weight"]))
        v_BRHE = heads(wan, linear(adapter, "to_v_ref", features_BRD))
        out_BLD = out_BLD + identity.ref_scale * attend(reference_query(q_BLHE, turn_LE), k_BRHE, v_BRHE)
    return linear(w, "to_out.0", out_BLD)


def reference_query(q_BLHE: Tensor, turn_LE: Tensor) -> Tensor:
    """The query that meets the reference tokens: not rotated, for their place is not one in the video."""
    return q_BLHE


def cross_attention(wan: Wan, index: int, x_BLD: Tensor, text_BSD: Tensor, identity: Identity) -> Tensor:
    """Video attends to the prompt; beside it, by the same query, to the ID tokens. Nothing is rotated.

    All 512 text tokens take part: the zero padding of a prompt is attended to, never masked.
    """
    w = scope(wan.weights, f"blocks.{index}.attn2")
    q_BLHE = heads(wan, rms_norm(linear(w, "to_q", x_BLD), wan.eps, w["norm_q.weight"]))
    k_BSHE = heads(wan, rms_norm(linear(w, "to_k", text_BSD), wan.eps, w["norm_k.weight"]))
    v_BSHE = heads(wan, linear(w, "to_v", text_BSD))
    out_BLD = attend(q_BLHE, k_BSHE, v_BSHE)

    if identity.image_BId is not None:
        k_BIHE = heads(wan, rms_norm(linear(w, "add_k_proj", identity.image_BId), wan.eps, w["norm_added_k.weight"]))
        out_BLD = out_BLD + attend(q_BLHE, k_BIHE, heads(wan, linear(w, "add_v_proj", identity.image_BId)))

    if index in identity.id_layers:
        adapter = identity.id_layers[index]
        tokens_BND = with_registers(identity.id_tokens_BND, adapter)
        k_BNHE = heads(wan, id_key_norm(wan, linear(adapter, "to_k_ip", tokens_BND), adapter, w))
        v_BNHE = heads(wan, linear(adapter, "to_v_ip", tokens_BND))
        out_BLD = out_BLD + identity.id_scale * attend(q_BLHE, k_BNHE, v_BNHE)
    return linear(w, "to_out.0", out_BLD)


def with_registers(tokens_BND: Tensor, adapter: Weights) -> Tensor:
    """Full: the subject's tokens, then the block's own learned ones. Lite has none of these."""
    if "registers" not in adapter:
        return tokens_BND
    return torch.cat([tokens_BND, adapter["registers"]], dim=1)


def id_key_norm(wan: Wan, k_BND: Tensor, adapter: Weights, attention: Weights) -> Tensor:
    """Full: the block's own learned norm of text keys. Lite: a norm that has learned nothing."""
    if "registers" not in adapter:
        return rms_norm(k_BND, LITE_KEY_EPS)
    return rms_norm(k_BND, wan.eps, attention["norm_k.weight"])


def attend(q_BLHE: Tensor, k_BSHE: Tensor, v_BSHE: Tensor) -> Tensor:
    """softmax(q kᵀ / √E) v in each head; the heads are joined: [B, L, D].

    In fp64: an even softmax over hundreds of values that cancel is where a plain fp32 sum would lose most.
    """
    dtype = q_BLHE.dtype
    q_BLHE, k_BSHE, v_BSHE = q_BLHE.double(), k_BSHE.double(), v_BSHE.double()
    scores_BHLS = torch.einsum("blhe,bshe->bhls", q_BLHE, k_BSHE) / math.sqrt(q_BLHE.shape[-1])
    return torch.einsum("bhls,bshe->blhe", scores_BHLS.softmax(dim=-1), v_BSHE).flatten(2).to(dtype)


def rotation(grid_tyx: tuple[int, int, int], head_dim: int) -> Tensor:
    """RoPE over three axes: for every token, in row-major order, its turns e^(iθ): complex [L, E/2].

    Rows and columns take 2·⌊E/6⌋ channels each, frames the rest.
    """
    space = 2 * (head_dim // 6)
    angles_tyxe = []
    for axis, (size, channels) in enumerate(zip(grid_tyx, (head_dim - 2 * space, space, space), strict=True)):
        # in fp64, as the model has it: at position 1000 an fp32 angle is off by up to 3e-5
        frequency_e = ROPE_THETA ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
        angle = torch.arange(size, dtype=torch.float64)[:, None] * frequency_e
        shape = [size if other == axis else 1 for other in range(3)]
        angles_tyxe.append(angle.view(*shape, -1).expand(*grid_tyx, -1))
    angle_LE = torch.cat(angles_tyxe, dim=-1).flatten(0, 2)
    return torch.polar(torch.ones_like(angle_LE), angle_LE).to(torch.complex64)


def rotate(x_BLHE: Tensor, turn_LE: Tensor) -> Tensor:
    """Turns every pair of neighbouring channels, read as one complex number, by its token's angle."""
    pairs = torch.view_as_complex(x_BLHE.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turn_LE[None, :, None]).flatten(-2).type_as(x_BLHE)


def embed_time(wan: Wan, timestep: int) -> tuple[Tensor, Tensor]:
    """Timestep 0…999 → its embedding [1, D], and the shifts, scales and gates of all blocks [1, 6, D]."""
    w = scope(wan.weights, "condition_embedder")
    half = wan.freq_dim // 2
    # in fp32, as the model has it, though at timestep 999 an angle is then off by up to 3e-5
    angle_e = timestep * torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    wave_Be = torch.cat([angle_e.cos(), angle_e.sin()])[None]
    time_BD = linear(w, "time_embedder.linear_2", F.silu(linear(w, "time_embedder.linear_1", wave_Be)))
    return time_BD, linear(w, "time_proj", F.silu(time_BD)).unflatten(1, (6, -1))


def embed_text(wan: Wan, text_BSd: Tensor) -> Tensor:
    """The text encoder's channels → the model's."""
    w = scope(wan.weights, "condition_embedder.text_embedder")
    return linear(w, "linear_2", F.gelu(linear(w, "linear_1", text_BSd), approximate="tanh"))


def embed_image(wan: Wan, image_BId: Tensor) -> Tensor:
    """The image encoder's channels → the model's: norm, two layers with an exact GELU between, norm."""
    w = scope(wan.weights, "condition_embedder.image_embedder")
    hidden = F.gelu(linear(w, "ff.net.0.proj", layer_norm(image_BId, IMAGE_EPS, scope(w, "norm1"))))
    return layer_norm(linear(w, "ff.net.2", hidden), IMAGE_EPS, scope(w, "norm2"))


def feed_forward(w: Weights, x_BLD: Tensor) -> Tensor:
    """Two layers with a tanh-GELU between."""
    return linear(w, "2", F.gelu(linear(w, "0.proj", x_BLD), approximate="tanh"))


def patchify(wan: Wan, latents_BCTYX: Tensor) -> Tensor:
    """Every 1x2x2 patch becomes one token; tokens run over columns first, then rows, then frames."""
    w = scope(wan.weights, "patch_embedding")
    return F.conv3d(latents_BCTYX.type_as(w["weight"]), w["weight"], w["bias"], stride=wan.patch).flatten(2).mT


def project_out(wan: Wan, x_BLD: Tensor, time_BD: Tensor) -> Tensor:
    """The last norm, shifted and scaled by the time, and the projection to a patch's values."""
    shift, scale = (wan.weights["scale_shift_table"] + time_BD[:, None]).split(1, 1)
    return linear(wan.weights, "proj_out", layer_norm(x_BLD, wan.eps) * (1 + scale) + shift)


def unpatchify(wan: Wan, patches_BLp: Tensor, grid_tyx: tuple[int, int, int]) -> Tensor:
    """Undoes `patchify`'s cutting. In a patch's values the channel runs fastest."""
    x = patches_BLp.unflatten(1, grid_tyx).unflatten(-1, (*wan.patch, -1))  # B t y x 1 2 2 C
    return x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def heads(wan: Wan, x_BLD: Tensor) -> Tensor:
    """[B, L, D] → [B, L, H, E]."""
    return x_BLD.unflatten(-1, (wan.heads, -1))


def layer_norm(x: Tensor, eps: float, w: Weights | None = None) -> Tensor:
    """Over the last dimension, in fp32; without weights where AdaLN's shift and scale take their place."""
    w = {name: tensor.float() for name, tensor in (w or {}).items()}
    return F.layer_norm(x.float(), x.shape[-1:], w.get("weight"), w.get("bias"), eps)


def rms_norm(x_BLD: Tensor, eps: float, weight_D: Tensor | None = None) -> Tensor:
    """Over all of D, that is across the heads: Wan normalises q and k before it cuts them into heads."""
    normed_BLD = x_BLD * torch.rsqrt(x_BLD.float().square().mean(-1, keepdim=True) + eps).type_as(x_BLD)
    return normed_BLD if weight_D is None else normed_BLD * weight_D


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    """x Wᵀ, plus the bias where the file has one, in the weights' type."""
    weight = w[f"{name}.weight"]
    return F.linear(x.type_as(weight), weight, w.get(f"{name}.bias"))


def scope(w: Weights, name: str) -> Weights:
    """The tensors under `name.`, with that beginning taken off."""
    return {key.removeprefix(f"{name}."): value for key, value in w.items() if key.startswith(f"{name}.")}
