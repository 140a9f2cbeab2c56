"""The one attention seam: kernels by name, and how the token axis lies over ranks.

Legend of tensor names: B batch, L query tokens held by this rank, N all tokens, S key tokens,
H heads, D channels of a head, C = H·D channels.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lynx_parallel.errors import ClusterError

AttentionName = Literal["auto", "flash3", "flash", "cudnn", "sdpa"]
Attention = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
"""(q_BLHD, k_BSHD, v_BSHD, need_lse) → out [B, L, H, D] and, if asked for, log-sum-exp [B, H, L] fp32."""


def choose_kernel(name: AttentionName, device: torch.device) -> tuple[str, Attention]:
    """The kernel of a name, or for ``auto`` the first that is installed of ``flash3``, ``flash``, ``cudnn``, ``sdpa``.

    The CPU has ``sdpa`` alone.

    Raises:
        ClusterError: the kernel asked for is not to be had here.
    """
    available = ["sdpa"] if device.type == "cpu" else [n for n, there in _AVAILABLE.items() if there()]
    if name == "auto":
        name = available[0]  # type: ignore[assignment]
    if name not in available:
        raise ClusterError(f"--attention {name}: not available on {device.type} here; one of {', '.join(available)}")
    return name, _KERNELS[name]


def sdpa(
    q_BLHD: torch.Tensor, k_BSHD: torch.Tensor, v_BSHD: torch.Tensor, need_lse: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """torch's own choice of kernel; where the log-sum-exp is needed, its flash kernel."""
    q, k, v = (t.transpose(1, 2) for t in (q_BLHD, k_BSHD, v_BSHD))
    if not need_lse:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2), None
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    if q.device.type == "cpu":
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = flash(q, k, v)[:2]
    return out.transpose(1, 2), lse


def cudnn(
    q_BLHD: torch.Tensor, k_BSHD: torch.Tensor, v_BSHD: torch.Tensor, need_lse: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """cuDNN's fused attention."""
    q, k, v = (t.transpose(1, 2) for t in (q_BLHD, k_BSHD, v_BSHD))
    if not need_lse:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2), None
    out, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)[:2]
    return out.transpose(1, 2), lse.squeeze(-1)


def flash(
    q_BLHD: torch.Tensor, k_BSHD: torch.Tensor, v_BSHD: torch.Tensor, need_lse: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """FlashAttention 2."""
    from flash_attn import flash_attn_func

    if not need_lse:
        return flash_attn_func(q_BLHD, k_BSHD, v_BSHD), None
    out, lse, _ = flash_attn_func(q_BLHD, k_BSHD, v_BSHD, return_attn_probs=True)
    return out, lse


def flash3(
    q_BLHD: torch.Tensor, k_BSHD: torch.Tensor, v_BSHD: torch.Tensor, need_lse: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """FlashAttention 3 (Hopper)."""
    from flash_attn_interface import flash_attn_func

    out, lse = flash_attn_func(q_BLHD, k_BSHD, v_BSHD, return_attn_probs=True)
    return out, lse if need_lse else None


def _hopper() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9


_KERNELS: dict[str, Attention] = {"flash3": flash3, "flash": flash, "cudnn": cudnn, "sdpa": sdpa}
_AVAILABLE: dict[str, Callable[[], bool]] = {
    "flash3": lambda: importlib.util.find_spec("flash_attn_interface") is not None and _hopper(),
    "flash": lambda: importlib.util.find_spec("flash_attn") is not None,
    "cudnn": torch.backends.cudnn.is_available,
    "sdpa": lambda: True,
}


class LocalTokens:
    """The token axis on a single rank: nothing to split, nothing to gather.

    ``parallel.xdit.UspTokens`` has the same three methods for a gang. The model calls these and
    never asks how many ranks there are. Text, ID and reference keys are replicated on every rank,
    so only self-attention goes through here.

    Args:
        kernel: of ``choose_kernel``.
    """

    def __init__(self, kernel: Attention = sdpa):
        self.kernel = kernel

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
        return self.attention(q_BLHD, k_BLHD, v_BLHD)

    def attention(self, q_BLHD: torch.Tensor, k_BSHD: torch.Tensor, v_BSHD: torch.Tensor) -> torch.Tensor:
        """Attention of this rank's queries over keys that every rank holds whole; [B, L, H, D]."""
        return self.kernel(q_BLHD, k_BSHD, v_BSHD, False)[0]
