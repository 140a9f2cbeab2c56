"""Every attention kernel of this machine against SDPA's math kernel in fp32, with and without the log-sum-exp."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_model import KERNELS, attention_kernel
from lynx_parallel.errors import ClusterError

HEADS, HEAD_DIM = 4, 128
QUERIES = 1000
SHAPES = {
    "self-attention, 128 divides": (1024, 1024),
    "self-attention, 128 does not divide": (1000, 1000),
    "self-attention, a prime number": (997, 997),
    "text": (QUERIES, 512),
    "identity": (QUERIES, 32),
    "reference": (QUERIES, 256),
}
"""Queries, keys. Short, so that one missing key shows, and padded keys that take part (24 at 1000) show too."""
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3}
"""Relative. bf16: the output and the probabilities are rounded to 8 bits; torch's SDPA on the CPU has 1.9e-3. Padding
that takes part gives 1.4e-2 at 1000 keys, a missing last key 0.13."""
LSE_TOLERANCE = 1e-3
"""Absolute; the log-sum-exp is fp32 in every kernel, of products that bf16 inputs give exactly."""


@pytest.mark.parametrize("need_lse", [False, True], ids=["output", "output and lse"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_attention(name: str, shape: str, dtype: torch.dtype, need_lse: bool, device: torch.device) -> None:
    try:
        _, kernel = attention_kernel(name, device, dtype, need_lse=need_lse)
    except ClusterError as error:
        pytest.skip(str(error))
    queries, keys = SHAPES[shape]
    generator = torch.Generator().manual_seed(keys)
    # Values with a mean: without one, attention over many keys is almost zero and errors hide in its rounding.
    means = ((queries, 0.0), (keys, 0.0), (keys, 0.5))
    q, k, v = (torch.randn(1, length, HEADS, HEAD_DIM, generator=generator) + mean for length, mean in means)
    v[:, -1] += 50  # the last key must not be missing
    q, k, v = (tensor.to(device, dtype) for tensor in (q, k, v))
    out, lse = kernel(q, k, v, need_lse)

    q32, k32, v32 = (t.float().transpose(1, 2) for t in (q, k, v))
    with sdpa_kernel(SDPBackend.MATH):
        expected = F.scaled_dot_product_attention(q32, k32, v32).transpose(1, 2)
    assert out.shape == expected.shape
    assert out.dtype == dtype
    error = ((out.double() - expected.double()).norm() / expected.double().norm()).item()
    assert error <= TOLERANCE[dtype], error
    assert (lse is not None) == need_lse
    if lse is not None:
        scores = q32.double() @ k32.double().mT / HEAD_DIM**0.5
        assert lse.shape == (1, HEADS, queries)
        assert (lse.double() - scores.logsumexp(-1)).abs().max().item() <= LSE_TOLERANCE


@pytest.mark.parametrize("need_lse", [False, True], ids=["output", "output and lse"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "bf16"])
def test_auto_always_has_a_kernel(dtype: torch.dtype, need_lse: bool, device: torch.device) -> None:
    """The kernel must also run: being importable is not enough."""
    name, kernel = attention_kernel("auto", device, dtype, need_lse=need_lse)
    assert name in KERNELS
    q, k, v = torch.randn(3, 1, QUERIES, HEADS, HEAD_DIM).to(device, dtype)
    out, lse = kernel(q, k, v, need_lse)
    assert out.isfinite().all()
    assert (lse is not None) == need_lse
