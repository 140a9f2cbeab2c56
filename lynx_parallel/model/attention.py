"""The one attention seam, and how the token axis lies over ranks.

Legend of tensor names: B batch, L query tokens held by this rank, N all tokens, S key tokens,
H heads, D channels of a head, C = H·D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def attention(q_BLHD: torch.Tensor, k_BSHD: torch.Tensor, v_BSHD: torch.Tensor) -> torch.Tensor:
    """Softmax attention of every query over every key, no mask; returns [B, L, H, D]."""
    out = F.scaled_dot_product_attention(q_BLHD.transpose(1, 2), k_BSHD.transpose(1, 2), v_BSHD.transpose(1, 2))
    return out.transpose(1, 2)


class LocalTokens:
    """The token axis on a single rank: nothing to split, nothing to gather.

    ``parallel.xdit.UspTokens`` has the same three methods for a gang. The model calls these and
    never asks how many ranks there are. Text, ID and reference keys are replicated on every rank,
    so only self-attention goes through here.
    """

    def split(self, x_BNC: torch.Tensor) -> torch.Tensor:
        """[B, N, ...] on every rank → this rank's [B, L, ...]."""
        return x_BNC

    def gather(self, x_BLC: torch.Tensor, length: int) -> torch.Tensor:
        """This rank's [B, L, ...] → [B, length, ...] on every rank."""
        return x_BLC

    def self_attention(
        self, q_BLHD: torch.Tensor, k_BLHD: torch.Tensor, v_BLHD: torch.Tensor, length: int
    ) -> torch.Tensor:
        """Attention of this rank's queries over the ``length`` keys of all ranks; [B, L, H, D]."""
        return attention(q_BLHD, k_BLHD, v_BLHD)
