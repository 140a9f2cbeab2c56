"""Broadcasts rank 0's tensors to all ranks of the gang."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def broadcast(record: T | None, kind: type[T], *, device: torch.device) -> T | None:
    """Sends a dataclass of tensors (or None) from rank 0 to every rank of the default group.

    Args:
        record: on rank 0, None where it has none; None on the others.
        kind: its class.

    Returns:
        The record, bit for bit, on every rank; None on every rank where rank 0 has none.
    """
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    shapes: list[Any] = [None]
    if record is not None:
        tensors = [getattr(record, name) for name in names]
        shapes = [[None if t is None else (tuple(t.shape), t.dtype) for t in tensors]]
    dist.broadcast_object_list(shapes, src=0, device=device)
    if shapes[0] is None:
        return None
    received: dict[str, torch.Tensor | None] = {}
    for name, shape in zip(names, shapes[0], strict=True):
        if shape is None:
            received[name] = None
            continue
        mine = (
            getattr(record, name).contiguous()
            if record is not None
            else torch.empty(shape[0], dtype=shape[1], device=device)
        )
        dist.broadcast(mine, src=0)
        received[name] = mine
    return kind(**received)
