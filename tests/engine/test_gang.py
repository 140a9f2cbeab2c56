"""What a gang makes of its ranks' answers, without Ray: ranks whose calls are coroutines."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayTaskError

import lynx_parallel
from lynx_parallel.engine.gang import Gang
from lynx_parallel.engine.gang_start import check_files, meet
from lynx_parallel.engine.ray_results import answer
from lynx_parallel.errors import CheckpointError, ClusterError, LynxError, RenderError, SubjectError
from lynx_parallel.failures import kind_of
from lynx_parallel.output.folder import Output
from lynx_parallel.rank.messages import Hello, Progress


def rank(name: str, host: str = "here", version: str = lynx_parallel.__version__, **answers: Any) -> Any:
    hello = Hello(1, host, name, "sdpa", version)
    calls = {"hello": hello, "progress": Progress(0, 0, 0.0), **answers}

    def call(answer: Any) -> Any:
        async def remote(*_: Any) -> Any:
            await asyncio.sleep(0)
            return await answer() if callable(answer) else answer

        return SimpleNamespace(remote=remote)

    return SimpleNamespace(name=name, **{method: call(answer) for method, answer in calls.items()})


def gang(*ranks: Any, hung_after: float = 60.0) -> Gang:
    return Gang(list(ranks), None, hung_after)  # type: ignore[arg-type]


def test_ranks_of_one_machine_lie_side_by_side() -> None:
    mixed = gang(rank("a0", "a"), rank("b0", "b"), rank("a1", "a"), rank("b1", "b"))
    asyncio.run(meet(mixed, 5))
    assert [one.name for one in mixed.ranks] == ["a0", "a1", "b0", "b1"]
    assert [hello.device for hello in mixed.hellos] == ["a0", "a1", "b0", "b1"]


def test_another_version_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"far runs lynx-parallel 0\.0\.9, this driver .*: install one version") as e:
        asyncio.run(meet(gang(rank("a"), rank("b", "far", "0.0.9")), 5))
    assert e.value.exit_code == 3


def test_a_machine_that_does_not_see_the_folder_is_named(tmp_path: Path) -> None:
    async def check() -> None:
        one = gang(rank("a", misses=[]), rank("b", "far", misses=["/mnt/out, the output folder"]))
        await meet(one, 5)
        await check_files(one, Output(tmp_path), [])

    with pytest.raises(
        ClusterError, match=r"far: output: does not see /mnt/out, the output folder\. All machines must"
    ):
        asyncio.run(check())
    assert not list((tmp_path / ".lynx").iterdir())  # the probe is gone


def test_a_silent_rank_fails_whatever_the_gang_is_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lynx_parallel.engine.gang.WATCH_EVERY_S", 0.01)

    async def never() -> None:
        await asyncio.Event().wait()

    async def wait() -> None:
        stuck = gang(rank("a", load=never), rank("b", progress=never), hung_after=0.1)
        await stuck.results([stuck.ranks[0].load.remote()])

    with pytest.raises(RenderError, match="rank 1 does not answer") as caught:
        asyncio.run(asyncio.wait_for(wait(), 10))
    assert caught.value.kind == "hung"


def test_work_without_steps_may_not_take_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that answers, while what it is at does not end; what it waits for does not count."""
    monkeypatch.setattr("lynx_parallel.engine.gang.WATCH_EVERY_S", 0.01)
    monkeypatch.setattr("lynx_parallel.engine.gang.NO_STEPS_S", 0.2)
    waits = iter(range(40))

    async def progress() -> Progress:
        return Progress(0, 0, 0.0, "room on the disk" if next(waits, None) is not None else "")

    async def never() -> None:
        await asyncio.Event().wait()

    async def wait() -> None:
        stuck = gang(rank("a", load=never, progress=progress))
        await stuck.results([stuck.ranks[0].load.remote()])

    with pytest.raises(RenderError, match="not done after") as caught:
        asyncio.run(asyncio.wait_for(wait(), 60))
    assert caught.value.kind == "hung"
    assert next(waits, None) is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), "memory"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "memory"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "disk"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "raised"),
        (ValueError("anything"), "raised"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "memory"),
        (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be …"), "memory"),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), "raised"),
        (RuntimeError("CUDA driver error: out of memory"), "memory"),
        (RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"), "memory"),
        (
            torch.distributed.DistBackendError(
                "NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled cuda error\nncclUnhandledCudaError:"
                " Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'"
            ),
            "memory",
        ),
        (
            torch.distributed.DistBackendError(
                "NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled cuda error\nCuda failure 999 'unknown error'"
            ),
            "raised",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"), "raised"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "raised"),
        (RuntimeError("GET was unable to find an engine to execute this computation"), "memory"),
        (RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"), "memory"),
    ],
    ids=str,
)
def test_kinds_of_what_a_rank_raises(error: Exception, kind: str) -> None:
    assert kind_of(error) == kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (
            CheckpointError("w.safetensors: not a readable safetensors file: Cannot allocate memory (os error 12)"),
            "memory",
        ),
        (CheckpointError("w.safetensors: not a readable safetensors file: MemoryError"), "memory"),
        (
            CheckpointError("w.safetensors: not a readable safetensors file: Too many open files (os error 24)"),
            "raised",
        ),
        (SubjectError("ada: ada.png: Input/output error"), "raised"),
        (SubjectError("ada: ada.png: no face found"), None),
        (CheckpointError("w.safetensors: a.weight: missing"), None),
    ],
    ids=str,
)
def test_good_files_that_could_not_be_read_are_tried_again(error: LynxError, kind: str | None) -> None:
    """A machine's fault must neither end the run nor put a subject aside."""

    async def raising() -> None:
        raise RayTaskError("load", "", error).as_instanceof_cause()

    with pytest.raises(LynxError) as caught:
        asyncio.run(answer(raising()))
    if kind is None:
        assert caught.value is error
    else:
        assert isinstance(caught.value, RenderError)
        assert (caught.value.kind, str(caught.value)) == (kind, str(error))
