"""Damage to files, and a resume state to damage."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from lynx_parallel.stages.resume_state import ResumeState


def flip(path: Path, bit: int) -> None:
    """Changes one bit and keeps size and mtime, as a disk that forgets does."""
    status, data = path.stat(), bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def state() -> ResumeState:
    numbers = torch.arange(48, dtype=torch.float32).reshape(1, 2, 2, 3, 4)
    return ResumeState(numbers, numbers + 1, torch.stack([numbers, numbers + 2]), torch.tensor([3, 2, 2]))
