"""``cuda`` tensors without memory and without a GPU, and a mode that refuses what a GPU would suffer from.

Fake tensors have shapes, strides, types and devices, and no values. Their kernels accept almost any mixture of inputs;
``Strict`` does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS_VALUES = frozenset({
    "_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero", "nonzero_numpy", "masked_select",
    "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave", "bincount", "_pin_memory",
})  # fmt: skip
"""Operators whose result or its shape depends on values: the host waits for the device."""
ONE_DTYPE = ("mm", "bmm", "addmm", "baddbmm", "linear", "convolution", "scaled_dot_product")
"""Operators, by a part of their names, whose floating inputs must have one type."""


class Strict(TorchDispatchMode):
    """Raises AssertionError where an operator mixes devices or types, leaves the device, or makes the host wait.

    Attributes:
        calls: operators seen.
    """

    def __init__(self, device: str = "cuda"):
        super().__init__()
        self.device = device
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "prim":  # asks a tensor for its device
            return func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        inputs = _tensors((args, kwargs))
        assert name not in READS_VALUES, f"{name} makes the host wait for the device"
        # A number on the CPU becomes an argument of the kernel, except where it is copied to the device.
        copies = name in ("_to_copy", "copy_", "lift_fresh", "lift_fresh_copy")
        strays = [tensor for tensor in inputs if tensor.device.type != self.device and (tensor.ndim or copies)]
        assert not strays, f"{name} reads a tensor on {strays[0].device}, of shape {tuple(strays[0].shape)}"
        if any(part in name for part in ONE_DTYPE):
            dtypes = {tensor.dtype for tensor in inputs if tensor.is_floating_point()}
            assert len(dtypes) == 1, f"{name} mixes {', '.join(sorted(map(str, dtypes)))}"
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            assert tensor.device.type == self.device, f"{name} makes a tensor on {tensor.device}"
        self.calls += 1
        return out


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Within it, tensors are fake; ``device="cuda"`` works on any build of torch."""
    with FakeTensorMode(), _AnyBuild(), torch.no_grad():
        yield


def fake_weights(module: nn.Module, dtypes: dict[str, torch.dtype]) -> None:
    """Puts a module of the meta device on ``cuda``; within ``fake_cuda``.

    Args:
        dtypes: of each parameter, by name.
    """
    state = {
        name: torch.empty(tuple(parameter.shape), dtype=dtypes[name], device="cuda")
        for name, parameter in module.named_parameters()
    }
    module.load_state_dict(state, assign=True)
    for inner in module.modules():
        for name, buffer in list(inner._buffers.items()):
            if buffer is not None:
                inner._buffers[name] = torch.empty(tuple(buffer.shape), dtype=buffer.dtype, device="cuda")


class _AnyBuild(TorchFunctionMode):
    """Answers what a build of torch without CUDA refuses to do with fake ``cuda`` tensors.

    These bindings look for the device before the dispatcher sees the call. The same operators are called directly.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__getitem__:
            return _index(*args)
        if func is torch.Tensor.contiguous and not kwargs:
            [tensor] = args
            fresh = torch.ops.aten.clone.default
            return tensor if tensor.is_contiguous() else fresh(tensor, memory_format=torch.contiguous_format)
        return func(*args, **(kwargs or {}))


def _index(tensor: torch.Tensor, key: Any) -> torch.Tensor:
    key = key if isinstance(key, tuple) else (key,)
    if Ellipsis in key:
        at, missing = key.index(Ellipsis), tensor.ndim - sum(part is not None for part in key) + 1
        key = key[:at] + (slice(None),) * missing + key[at + 1 :]
    dim = 0
    for part in key:
        if isinstance(part, int):
            tensor = tensor.select(dim, part)
            continue
        # Indexing by a tensor may make the host wait, and nothing here needs it.
        assert part is None or isinstance(part, slice), f"index {part!r}: expected int, slice, None or ..."
        if part is None:
            tensor = tensor.unsqueeze(dim)
        else:
            tensor = torch.ops.aten.slice.Tensor(tensor, dim, part.start, part.stop, part.step or 1)
        dim += 1
    return tensor


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
