"""Lynx's trained parts: the resampler, the ID projections and the reference projections.

State-dict keys match upstream's files exactly, so loading is ``load_state_dict(strict=True)``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

ARCFACE_DIM = 512
NUM_ID_TOKENS = 16
LITE_NORM_EPS = 1e-5
"""Lite normalises its keys without parameters, over all channels."""


class PerceiverAttention(nn.Module):
    """Attention of latents to the input and to themselves. q and k are each scaled by D^-1/4."""

    def __init__(self, dim: int, heads: int, dim_head: int):
        super().__init__()
        inner = heads * dim_head
        self.heads, self.dim_head = heads, dim_head
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, x_BSC: torch.Tensor, latents_BQC: torch.Tensor) -> torch.Tensor:
        x_BSC, latents_BQC = self.norm1(x_BSC), self.norm2(latents_BQC)
        q = self.to_q(latents_BQC)
        k, v = self.to_kv(torch.cat((x_BSC, latents_BQC), dim=1)).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, self.dim_head)).transpose(1, 2) for t in (q, k, v))
        scale = self.dim_head**-0.25
        # Written out rather than fused: sixteen queries, and the softmax must be fp32 as in training.
        weights = ((q * scale) @ (k * scale).transpose(-2, -1)).float().softmax(dim=-1).type_as(q)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class Resampler(nn.Module):
    """Makes ID tokens of an ArcFace vector.

    Input [B, 1, 512], output [B, queries, output_dim] with output_dim 5120 (full) or 2048 (lite) at
    14B. Sizes come from the file: see ``Resampler.from_shapes``.
    """

    def __init__(
        self, *, embedding_dim: int, dim: int, depth: int, heads: int, dim_head: int, queries: int,
        ff_dim: int, output_dim: int,
    ):  # fmt: skip
        super().__init__()
        self.latents = nn.Parameter(torch.empty(1, queries, dim))
        self.proj_in = nn.Linear(embedding_dim, dim)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(dim, heads, dim_head),
                    nn.Sequential(
                        nn.LayerNorm(dim),
                        nn.Linear(dim, ff_dim, bias=False),
                        nn.GELU(),
                        nn.Linear(ff_dim, dim, bias=False),
                    ),
                ]
            )
            for _ in range(depth)
        )
        self.proj_out = nn.Linear(dim, output_dim)
        self.norm_out = nn.LayerNorm(output_dim)

    @classmethod
    def from_shapes(cls, shapes: dict[str, tuple[int, ...]]) -> Resampler:
        """Infers every size from a checkpoint's shapes; heads are 64 channels wide, as trained.

        Raises:
            KeyError: a key that fixes a size is absent.
        """
        dim_head = 64
        depth = len({key.split(".")[1] for key in shapes if key.startswith("layers.")})
        return cls(
            embedding_dim=shapes["proj_in.weight"][1],
            dim=shapes["latents"][2],
            depth=depth,
            heads=shapes["layers.0.0.to_q.weight"][0] // dim_head,
            dim_head=dim_head,
            queries=shapes["latents"][1],
            ff_dim=shapes["layers.0.1.1.weight"][0],
            output_dim=shapes["proj_out.weight"][0],
        )

    def forward(self, embedding_BSE: torch.Tensor) -> torch.Tensor:
        latents = self.latents.expand(embedding_BSE.shape[0], -1, -1)
        x = self.proj_in(embedding_BSE)
        for attention, feed_forward in self.layers:
            latents = attention(x, latents) + latents
            latents = feed_forward(latents) + latents
        return self.norm_out(self.proj_out(latents))


class IDProjection(nn.Module):
    """One block's K and V of the ID tokens.

    Full: biased, with ``registers`` [1, 16, id_dim] appended to the tokens, K through the block's own
    ``norm_k``. Lite: no bias, no registers, K through a parameter-free RMS norm over all channels.
    """

    def __init__(self, id_dim: int, inner_dim: int, num_registers: int):
        super().__init__()
        full = num_registers > 0
        self.to_k_ip = nn.Linear(id_dim, inner_dim, bias=full)
        self.to_v_ip = nn.Linear(id_dim, inner_dim, bias=full)
        self.registers = nn.Parameter(torch.empty(1, num_registers, id_dim)) if full else None

    def forward(self, id_tokens_BSC: torch.Tensor, norm_k: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """Projects tokens to normalised K and V, each [B, S, inner_dim]."""
        if self.registers is None:
            k = self.to_k_ip(id_tokens_BSC)
            return F.rms_norm(k, k.shape[-1:], eps=LITE_NORM_EPS), self.to_v_ip(id_tokens_BSC)
        tokens = torch.cat((id_tokens_BSC, self.registers.expand(id_tokens_BSC.shape[0], -1, -1)), dim=1)
        return norm_k(self.to_k_ip(tokens)), self.to_v_ip(tokens)


class RefProjection(nn.Module):
    """One block's K and V of the reference branch's activations."""

    def __init__(self, dim: int, inner_dim: int):
        super().__init__()
        self.to_k_ref = nn.Linear(dim, inner_dim)
        self.to_v_ref = nn.Linear(dim, inner_dim)

    def forward(self, feature_BSC: torch.Tensor, norm_k: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """Projects tokens to normalised K and V, each [B, S, inner_dim]."""
        return norm_k(self.to_k_ref(feature_BSC)), self.to_v_ref(feature_BSC)
