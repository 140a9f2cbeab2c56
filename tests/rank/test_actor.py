"""The actor of a rank: errors of libraries reach the driver as errors that need no torch."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
import torch

from lynx_parallel.errors import RenderError, SubjectError
from lynx_parallel.rank.actor import RankActor


def actor(error: Exception) -> RankActor:
    def load() -> None:
        raise error

    made = RankActor.__new__(RankActor)
    made._rank = SimpleNamespace(load=load)  # type: ignore[assignment]
    return made


def test_an_error_of_torch_becomes_ours() -> None:
    with pytest.raises(RenderError, match=r"^OutOfMemoryError: CUDA out of memory") as raised:
        actor(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")).load()
    assert raised.value.kind == "memory"
    assert b"torch" not in pickle.dumps(raised.value)


def test_an_error_of_ours_stays_itself() -> None:
    error = SubjectError("ada: no face found")
    with pytest.raises(SubjectError) as raised:
        actor(error).load()
    assert raised.value is error
