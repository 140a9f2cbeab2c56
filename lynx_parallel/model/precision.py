"""Precision of fp32 arithmetic on CUDA. torch computes fp32 convolutions in TF32 by default.

TF32 keeps 10 of the 23 mantissa bits of fp32. The settings apply to the whole process. They have no effect on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch

from lynx_parallel.inputs.pipeline import VaeDtype

Fp32Precision = Literal["ieee", "tf32"]
"""Names of the precisions, as in torch."""


class VaePrecision(NamedTuple):
    """Precision of a VAE's weights and convolutions, by ``vae_dtype``."""

    weights: torch.dtype
    convolutions: Fp32Precision


VAE_PRECISIONS: dict[VaeDtype, VaePrecision] = {
    "float32": VaePrecision(torch.float32, "ieee"),
    "tf32": VaePrecision(torch.float32, "tf32"),
    "bfloat16": VaePrecision(torch.bfloat16, "ieee"),
}


def use_ieee() -> None:
    """Makes all fp32 arithmetic of this process true fp32: ``ieee`` for convolutions and matrix products."""
    torch.set_float32_matmul_precision("highest")
    _set_convolutions("ieee")


@contextmanager
def convolutions_in(precision: Fp32Precision) -> Iterator[None]:
    """Computes fp32 convolutions in this precision during the block."""
    before = torch.backends.cudnn.conv.fp32_precision
    _set_convolutions(precision)
    try:
        yield
    finally:
        _set_convolutions(before)


def _set_convolutions(precision: str) -> None:
    # The old flag goes first, as it resets the new one. Where the two disagree, readers of the old one raise
    # (``torch.backends.cudnn.flags``, inductor).
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.conv.fp32_precision = precision
