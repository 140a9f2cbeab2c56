"""Attention kernels, the choice among them, and the interface that splits the token axis over ranks.

Legend of tensor names: B batch, L query tokens held by this rank, N all tokens, S key tokens,
H heads, D channels of a head, C = H·D channels.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lynx_parallel.errors import ClusterError
from lynx_parallel.inputs.cluster import Attention as AttentionName
from lynx_parallel.text import one_line

Attention = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
"""(q_BLHD, k_BSHD, v_BSHD, need_lse) → out [B, L, H, D] and, if asked for, log-sum-exp [B, H, L] fp32."""

_PACKAGES = {"flash3": "flash_attn_interface", "flash": "flash_attn"}
_CUDNN_WITH_A_FAULT = 91500
"""cuDNN up to 9.15.0 fails, or gives wrong results, for lengths that 128 does not divide. torch has the same rule."""
_PROBED_KEYS = 130, 16
"""Numbers of keys with which a kernel is probed. 128 divides neither. The second is near the ID adapter's."""


class Kernel(NamedTuple):
    """A kernel that has given the right result on the device.

    Attributes:
        warnings: one line for each faster kernel that is installed but does not work.
    """

    name: str
    attention: Attention
    warnings: tuple[str, ...]


class Facts(NamedTuple):
    """Facts that the order of kernels depends on.

    Attributes:
        device: torch's device type.
        capability: CUDA compute capability; (0, 0) without CUDA.
        cudnn: cuDNN's version as torch gives it, 92000 for 9.20.0; 0 without cuDNN.
        installed: kernels whose package is installed.
    """

    device: str
    capability: tuple[int, int]
    dtype: torch.dtype
    cudnn: int
    installed: frozenset[str]


def find_facts(device: torch.device, dtype: torch.dtype) -> Facts:
    """Returns the facts of this machine. Asks CUDA only for a CUDA device."""
    if device.type != "cuda":
        capability, cudnn_version = (0, 0), 0
    else:
        capability, cudnn_version = torch.cuda.get_device_capability(device), torch.backends.cudnn.version() or 0
    specs = {name: importlib.util.find_spec(package) for name, package in _PACKAGES.items()}
    # A flash_attn without a file is only a folder that FlashAttention 4 leaves.
    installed = frozenset(name for name, spec in specs.items() if spec is not None and spec.origin is not None)
    return Facts(device.type, capability, dtype, cudnn_version, installed)


def refusal(name: str, facts: Facts) -> str | None:
    """Returns why a kernel cannot run here, or None."""
    if name == "sdpa":
        return None
    if facts.device != "cuda":
        return f"runs on CUDA only, not on {facts.device}"
    if facts.dtype not in (torch.bfloat16, torch.float16):
        return f"does not take {str(facts.dtype).removeprefix('torch.')}"
    found = "{}.{}".format(*facts.capability)
    if facts.capability < (8, 0):
        return f"needs compute capability 8.0 or newer, found {found}"
    # Its instructions exist on Hopper alone. Elsewhere its launch may call exit(1), which no probe survives.
    if name == "flash3" and facts.capability[0] != 9:
        return f"needs compute capability 9.x (Hopper), found {found}"
    if name == "cudnn" and facts.cudnn <= _CUDNN_WITH_A_FAULT:
        return f"needs cuDNN newer than 9.15 for lengths that 128 does not divide, found version {facts.cudnn}"
    if name in _PACKAGES and name not in facts.installed:
        return f"the package {_PACKAGES[name]} is not installed"
    return None


def candidates(facts: Facts) -> list[str]:
    """Returns the kernels for ``auto``, fastest first. The last one is always ``sdpa``."""
    # From Hopper on, cuDNN comes before FlashAttention 2, as in torch's own SDPA. ``make gpu`` measures both.
    order = ["flash3", "cudnn", "flash", "sdpa"] if facts.capability >= (9, 0) else ["flash", "sdpa"]
    return [name for name in order if refusal(name, facts) is None]


def choose_kernel(
    name: AttentionName,
    device: torch.device,
    dtype: torch.dtype,
    *,
    need_lse: bool = False,
    facts: Facts | None = None,
    kernels: Mapping[str, Attention] | None = None,
) -> Kernel:
    """Returns the kernel of a name, or for ``auto`` the fastest one that works. Calls it once on the device.

    Args:
        dtype: of the tensors that it gets.
        need_lse: it must also give the log-sum-exp, as a ring needs it.
        facts: those of this machine by default.
        kernels: by name; all by default.

    Raises:
        ClusterError: the kernel asked for does not work, or with ``auto`` none does. The message gives the reason.
    """
    facts, kernels = facts or find_facts(device, dtype), kernels or _KERNELS
    on = f"{device.type} in {str(dtype).removeprefix('torch.')}"

    def fault(one: str) -> str | None:
        return refusal(one, facts) or probe(kernels[one], device, dtype, need_lse)

    if name != "auto":
        if (reason := fault(name)) is None:
            return Kernel(name, kernels[name], ())
        others = ", ".join(one for one in kernels if one != name and fault(one) is None)
        raise ClusterError(f"--attention {name}: not available on {on}: {reason}. Available: {others or 'none'}.")
    broken: list[str] = []
    for one in candidates(facts):
        if (reason := fault(one)) is None:
            return Kernel(one, kernels[one], tuple(f"{line}. Attention uses {one} instead." for line in broken))
        broken.append(f"attention kernel {one} does not work on {on}: {reason}")
    raise ClusterError("; ".join(broken))


@torch.no_grad()
def probe(attention: Attention, device: torch.device, dtype: torch.dtype, need_lse: bool) -> str | None:
    """Compares a kernel on small tensors with attention in float64. Returns the fault, or None."""
    generator = torch.Generator().manual_seed(0)  # leaves the random state of the process alone
    for keys in _PROBED_KEYS:
        q_BLHD, k_BSHD, v_BSHD = (
            torch.randn(1, length, 2, 128, generator=generator).to(dtype) for length in (130, keys, keys)
        )
        scores_BHLS = torch.einsum("blhd,bshd->bhls", q_BLHD.double(), k_BSHD.double()) / 128**0.5
        wanted = torch.einsum("bhls,bshd->blhd", scores_BHLS.softmax(-1), v_BSHD.double())
        try:
            out, lse = attention(q_BLHD.to(device), k_BSHD.to(device), v_BSHD.to(device), need_lse)
            out = out.double().cpu()  # waits for the device: a launch fails late
            lse = lse.double().cpu() if need_lse and lse is not None else None
        except Exception as error:  # ImportError, OSError, RuntimeError, TypeError, … depending on the fault
            return f"{type(error).__name__}: {one_line((str(error).strip().splitlines() or ['no message'])[0])}"
        # One lost key in 130 is an error of 0.08; rounding to bf16 is one of 0.002. ``not <`` also catches NaN.
        tolerance = 1e-4 if dtype == torch.float32 else 0.02
        if out.shape != wanted.shape or not (out - wanted).norm() < tolerance * wanted.norm():
            return f"wrong result for {keys} keys"
        if not need_lse:
            continue
        wanted_lse = scores_BHLS.logsumexp(-1)
        if lse is None or lse.shape != wanted_lse.shape or not (lse - wanted_lse).abs().max() < 1e-3:
            return f"wrong log-sum-exp for {keys} keys"
    return None


def sdpa(
    q_BLHD: torch.Tensor, k_BSHD: torch.Tensor, v_BSHD: torch.Tensor, need_lse: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Calls the kernel that torch chooses. For the log-sum-exp: flash, or the efficient one for fp32 on CUDA."""
    q, k, v = (t.transpose(1, 2) for t in (q_BLHD, k_BSHD, v_BSHD))
    if not need_lse:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2), None
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[:2]
    elif q.dtype == torch.float32:
        out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
        lse = lse[:, :, : q.shape[2]]  # padded to a multiple of 32
    else:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[:2]
    return out.transpose(1, 2), lse


def cudnn(
    q_BLHD: torch.Tensor, k_BSHD: torch.Tensor, v_BSHD: torch.Tensor, need_lse: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Runs cuDNN's fused attention."""
    q, k, v = (t.transpose(1, 2) for t in (q_BLHD, k_BSHD, v_BSHD))
    if not need_lse:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2), None
    out, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)[:2]
    return out.transpose(1, 2), lse.reshape(q.shape[:3])  # torch gives [B, H, L, 1]


def flash(
    q_BLHD: torch.Tensor, k_BSHD: torch.Tensor, v_BSHD: torch.Tensor, need_lse: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Runs FlashAttention 2."""
    from flash_attn import flash_attn_func

    if not need_lse:
        return flash_attn_func(q_BLHD, k_BSHD, v_BSHD), None
    out, lse, _ = flash_attn_func(q_BLHD, k_BSHD, v_BSHD, return_attn_probs=True)
    return out, lse


def flash3(
    q_BLHD: torch.Tensor, k_BSHD: torch.Tensor, v_BSHD: torch.Tensor, need_lse: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Runs FlashAttention 3 (Hopper)."""
    from flash_attn_interface import flash_attn_func

    # Returns (out, lse). Beta versions lack this parameter, so the probe refuses them.
    out, lse = flash_attn_func(q_BLHD, k_BSHD, v_BSHD, return_attn_probs=True)
    return out, lse if need_lse else None


_KERNELS: dict[str, Attention] = {"flash3": flash3, "cudnn": cudnn, "flash": flash, "sdpa": sdpa}


class LocalTokens:
    """The token axis on a single rank, which splits and gathers nothing.

    ``parallel.xdit.UspTokens`` has the same three methods for a gang. The model calls these and
    never asks how many ranks there are. Text, ID and reference keys are replicated on every rank,
    so only self-attention goes through here.

    Args:
        kernel: of ``choose_kernel``.
    """

    def __init__(self, kernel: Attention = sdpa):
        self.kernel = kernel

    def split(self, x_BNC: torch.Tensor) -> torch.Tensor:
        """Returns this rank's [B, L, ...] of a tensor [B, N, ...] that every rank holds."""
        return x_BNC

    def gather(self, x_BLC: torch.Tensor, length: int) -> torch.Tensor:
        """This rank's [B, L, ...] → [B, length, ...] on every rank."""
        return x_BLC

    def self_attention(
        self, q_BLHD: torch.Tensor, k_BLHD: torch.Tensor, v_BLHD: torch.Tensor, length: int
    ) -> torch.Tensor:
        """Returns the attention of this rank's queries over the ``length`` keys of all ranks, [B, L, H, D]."""
        return self.attention(q_BLHD, k_BLHD, v_BLHD)

    def attention(self, q_BLHD: torch.Tensor, k_BSHD: torch.Tensor, v_BSHD: torch.Tensor) -> torch.Tensor:
        """Returns the attention of this rank's queries over keys that every rank holds, [B, L, H, D]."""
        return self.kernel(q_BLHD, k_BSHD, v_BSHD, False)[0]
