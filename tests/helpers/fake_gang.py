"""One rank of a gang whose other ranks do not exist: torch's fake process group, and a record of what is sent.

With fake tensors on ``cuda`` the code of a gang of GPUs runs without one. Nothing is computed and nothing is sent:
what can be checked are devices, shapes, types and the calls themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch._subclasses import FakeTensorMode
from torch.distributed._tools import fake_collectives
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lynx_parallel.model.checkpoints import loaded_dtype


class Collective(NamedTuple):
    """One collective call of one rank.

    Attributes:
        name: of the operator, such as ``allgather_``.
        group: ranks in its group.
        sent, whole: bytes of the tensor that this rank gives, and of all tensors of the call.
        devices: kinds of devices of these tensors.
        contiguous: whether all are, as NCCL requires.
    """

    name: str
    group: int
    sent: int
    whole: int
    devices: set[str]
    contiguous: bool


class Collectives(TorchDispatchMode):
    """Records every collective that is called within it, but not the waits."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Collective] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in fake_collectives.collective_ops - fake_collectives.sync_ops:
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            self.calls.append(
                Collective(
                    name=func.name().partition("::")[2],
                    group=fake_collectives.CollectiveOp.get_process_group(func, args).size(),
                    sent=tensors[-1].nbytes,  # what an operator writes stands before what it reads
                    whole=sum(tensor.nbytes for tensor in tensors),
                    devices={tensor.device.type for tensor in tensors},
                    contiguous=all(tensor.is_contiguous() for tensor in tensors),
                )
            )
        return func(*args, **(kwargs or {}))


@contextmanager
def fake_group(ranks: int, rank: int = 0) -> Iterator[dist.ProcessGroup]:
    """The process group of one rank. What it receives from the other ranks is arbitrary."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    try:
        assert dist.group.WORLD is not None
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


def pretend_gpu() -> None:
    """Makes this process, a fresh one, look like a rank with a GPU to ``xdit.join``, and NCCL and gloo be fake."""
    from lynx_parallel.parallel import xdit

    torch.version.cuda = "13.0"
    torch.cuda.set_device = lambda device: None
    torch.cuda.current_device = lambda: 0
    torch.cuda.device_count = lambda: 1
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch.cuda.get_device_name = lambda device=None: "NVIDIA H100"
    torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(gcnArchName="", major=9, minor=0)
    seen, torch.cuda.is_available = torch.cuda.is_available, lambda: True
    xdit._import_xfuser("cuda")
    torch.cuda.is_available = seen  # fake tensors would open a GPU that is available

    start, group = dist.init_process_group, dist.new_group

    def start_fake(backend: str, *, store: Any, rank: int, world_size: int, timeout: Any) -> None:
        assert backend == "nccl"
        start("fake", store=FakeStore(), rank=rank, world_size=world_size)

    dist.init_process_group = start_fake
    dist.new_group = lambda ranks=None, backend=None, **_: group(ranks, backend="fake")


class _BuiltForCpu(TorchFunctionMode):
    """Does for fake ``cuda`` tensors what Python's binding refuses where torch is built for the CPU alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.__getitem__ and args[0].device.type == "cuda":
            return _index(*args)
        if func is torch.Tensor.contiguous:
            return args[0] if args[0].is_contiguous() else args[0].clone(memory_format=torch.contiguous_format)
        if func is torch.Tensor.to and len(args) > 1 and not isinstance(args[1], torch.dtype | torch.Tensor):
            device = torch.device("cpu" if args[1] is None else args[1])
            if device.type == "cuda" and args[0].device.type == "cpu":
                return torch.ops.aten._to_copy(args[0], device=device)
        return func(*args, **kwargs)


def _index(x: torch.Tensor, key: Any) -> torch.Tensor:
    """``x[key]`` for integers, slices, None and an ellipsis."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        keys[at : at + 1] = [slice(None)] * (x.ndim - sum(one is not None for one in keys) + 1)
    dim = 0
    for one in keys:
        if one is None:
            x = x.unsqueeze(dim)
        elif isinstance(one, slice):
            x = torch.ops.aten.slice(x, dim, one.start, one.stop, one.step or 1)
        else:
            x = x.select(dim, one)
            continue
        dim += 1
    return x


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Within it, tensors have a device and a shape, but no memory; ``cuda`` is there."""
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(_BuiltForCpu())
        stack.enter_context(torch.no_grad())
        yield


def to_fake_cuda(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Puts a module on ``cuda`` within ``fake_cuda``, in ``dtype`` but for what diffusers keeps in fp32."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        kind = loaded_dtype(name, dtype) if tensor.is_floating_point() else tensor.dtype
        made: Any = torch.empty(tensor.shape, dtype=kind, device="cuda")
        owner, _, leaf = name.rpartition(".")
        if isinstance(tensor, torch.nn.Parameter):
            made = torch.nn.Parameter(made, requires_grad=False)
        setattr(module.get_submodule(owner), leaf, made)
    return module
