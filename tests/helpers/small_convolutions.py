"""Lets oneDNN compute the small 3-D convolutions of the demo's VAE, as it computes those of a real VAE.

Torch chooses oneDNN on the CPU by the size of the tensor. Its own kernel, for small tensors, is up to 14 times slower.
"""

from __future__ import annotations

from typing import Any

import torch

_conv3d = torch.nn.functional.conv3d


def use_onednn() -> None:
    """Replaces ``torch.nn.functional.conv3d`` in this process. The sums are rounded in another order."""
    if torch.backends.mkldnn.is_available():
        torch.nn.functional.conv3d = _conv3d_by_onednn


def use_torch() -> None:
    """Undoes ``use_onednn``: the bits are those of a process that tests have not changed."""
    torch.nn.functional.conv3d = _conv3d


def _conv3d_by_onednn(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    given = (stride, padding, dilation)
    if type(input) is not torch.Tensor or (input.device.type, input.dtype, input.ndim) != ("cpu", torch.float32, 5):
        return _conv3d(input, weight, bias, *given, groups)
    if not all(isinstance(each, tuple) for each in given):
        return _conv3d(input, weight, bias, *given, groups)
    return torch.ops.aten.mkldnn_convolution(input, weight, bias, padding, stride, dilation, groups)
