"""One transformer block of Wan with its Lynx projections.

Legend: B batch, L this rank's tokens, S key tokens, H heads, D channels of a head, C = H·D.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import nn

from lynx_parallel.model.adapters import IDProjection, RefProjection
from lynx_parallel.model.attention import LocalTokens

Rotary = tuple[torch.Tensor, torch.Tensor]
"""cos and sin, each [1, L, 1, D]."""


class KV(NamedTuple):
    """Static keys (normalised) and values of one block, each [B, S, H, D]."""

    k_BSHD: torch.Tensor
    v_BSHD: torch.Tensor


class BlockConditioning(NamedTuple):
    """Conditioning of one block by one guidance branch. None for an adapter that the block lacks.

    ``image`` is that of the first frame's CLIP embedding, for a base that sees one.
    """

    text: KV
    identity: KV | None = None
    reference: KV | None = None
    image: KV | None = None
    ip_scale: float = 1.0
    ref_scale: float = 1.0


def rotate(x_BLHD: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Applies the rotary position embedding to interleaved channel pairs."""
    cos, sin = rotary[0][..., 0::2], rotary[1][..., 1::2]
    x1, x2 = x_BLHD.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((x1 * cos - x2 * sin, x1 * sin + x2 * cos), dim=-1).flatten(-2).type_as(x_BLHD)


class LynxBlock(nn.Module):
    """Uses the modules of a ``WanTransformerBlock``, so that its state-dict keys stay Wan's.

    Adapters' keys: ``id_adapter.*`` and ``ref_adapter.*``; absent where the block has none.
    """

    def __init__(
        self,
        wan: WanTransformerBlock,
        id_adapter: IDProjection | None = None,
        ref_adapter: RefProjection | None = None,
    ):
        super().__init__()
        self.norm1, self.attn1 = wan.norm1, wan.attn1
        self.norm2, self.attn2 = wan.norm2, wan.attn2
        self.norm3, self.ffn = wan.norm3, wan.ffn
        self.scale_shift_table = wan.scale_shift_table
        self.id_adapter = id_adapter
        self.ref_adapter = ref_adapter

    def forward(
        self,
        x_BLC: torch.Tensor,
        modulation_B6C: torch.Tensor,
        rotary: Rotary,
        conditioning: BlockConditioning,
        tokens: LocalTokens,
        length: int,
        features: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Runs the block: [B, L, C] to [B, L, C].

        Args:
            modulation_B6C: the time embedding's shift, scale and gate for attention and feed-forward.
            tokens: how the token axis lies over ranks.
            length: number of tokens of all ranks together, without padding.
            features: gets the input of self-attention, [B, L, C]. Of a face crop, it is the reference feature.
        """
        x = x_BLC
        shift, scale, gate, shift_ff, scale_ff, gate_ff = (self.scale_shift_table + modulation_B6C).chunk(6, dim=1)

        # Tensors are deleted once nothing reads them. On one rank each is 0.34 GB at 14B and 480p, and
        # parallel.memory.activation_bytes counts those that are left.
        h = (self.norm1(x.float()) * (1 + scale) + shift).type_as(x)
        if features is not None:
            features.append(h)
        q, k, v = self._qkv(h)
        del h
        k = rotate(k, rotary)
        out = tokens.self_attention(rotate(q, rotary), k, v, length)
        del k, v
        if conditioning.reference is not None:
            # The reference attends with the queries as they were before RoPE.
            out = out + conditioning.ref_scale * tokens.attention(q, *conditioning.reference)
        del q
        out = self.attn1.to_out[0](out.flatten(2))
        x = (x.float() + out * gate).type_as(x)
        del out

        x = x + self._cross_attention(x, conditioning, tokens)

        h = (self.norm3(x.float()) * (1 + scale_ff) + shift_ff).type_as(x)
        h = self.ffn(h)
        return (x.float() + h.float() * gate_ff).type_as(x)

    def _cross_attention(
        self, x_BLC: torch.Tensor, conditioning: BlockConditioning, tokens: LocalTokens
    ) -> torch.Tensor:
        attn = self.attn2
        q = attn.norm_q(attn.to_q(self.norm2(x_BLC.float()).type_as(x_BLC))).unflatten(2, (attn.heads, -1))
        out = tokens.attention(q, *conditioning.text)
        if conditioning.image is not None:
            out = out + tokens.attention(q, *conditioning.image)
        if conditioning.identity is not None:
            out = out + conditioning.ip_scale * tokens.attention(q, *conditioning.identity)
        return attn.to_out[0](out.flatten(2))

    def _qkv(self, h_BLC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        attn = self.attn1
        q, k, v = attn.norm_q(attn.to_q(h_BLC)), attn.norm_k(attn.to_k(h_BLC)), attn.to_v(h_BLC)
        return (
            q.unflatten(2, (attn.heads, -1)),
            k.unflatten(2, (attn.heads, -1)),
            v.unflatten(2, (attn.heads, -1)),
        )

    def text_kv(self, text_BSC: torch.Tensor) -> KV:
        """Returns the static K and V of the cross-attention for projected text [B, 512, C]."""
        return self._kv(self.attn2.norm_k(self.attn2.to_k(text_BSC)), self.attn2.to_v(text_BSC))

    def image_kv(self, image_BSC: torch.Tensor) -> KV:
        """Returns the static K and V of the first frame's projected CLIP embedding, [B, 257, C]."""
        attn = self.attn2
        return self._kv(attn.norm_added_k(attn.add_k_proj(image_BSC)), attn.add_v_proj(image_BSC))

    def identity_kv(self, id_tokens_BSC: torch.Tensor) -> KV | None:
        """Returns the static K and V of ID tokens [B, 16, id_dim], or None without an ID adapter."""
        if self.id_adapter is None:
            return None
        return self._kv(*self.id_adapter(id_tokens_BSC, self.attn2.norm_k))

    def reference_kv(self, feature_BSC: torch.Tensor) -> KV | None:
        """Returns the static K and V of a reference feature [B, 256, C], or None without a reference adapter."""
        if self.ref_adapter is None:
            return None
        return self._kv(*self.ref_adapter(feature_BSC, self.attn1.norm_k))

    def _kv(self, k_BSC: torch.Tensor, v_BSC: torch.Tensor) -> KV:
        heads = self.attn2.heads
        return KV(k_BSC.unflatten(2, (heads, -1)), v_BSC.unflatten(2, (heads, -1)))
