"""The self-check of a rank and of a gang: all checks pass on this CPU, and each fails on a broken input."""

from __future__ import annotations

import errno
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lynx_parallel.failures import remedy_for
from lynx_parallel.inputs.layout import Layout
from lynx_parallel.model.attention import Attention, sdpa
from lynx_parallel.parallel import xdit
from lynx_parallel.rank import selfcheck
from lynx_parallel.rank.messages import Check
from lynx_parallel.rank.selfcheck import check_group, check_rank
from tests.helpers.processes import run_gang

CPU = torch.device("cpu")
CONFIG = {
    "num_attention_heads": 4, "attention_head_dim": 8, "patch_size": [1, 2, 2], "in_channels": 16, "out_channels": 16,
    "num_layers": 1,
}  # fmt: skip


def by_name(
    output: Path,
    kernel: Attention = sdpa,
    dtype: torch.dtype = torch.float32,
    need_lse: bool = False,
    device: torch.device = CPU,
) -> dict[str, Check]:
    return {check.name: check for check in check_rank(device, dtype, "sdpa", kernel, output, need_lse)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_good_rank(tmp_path: Path, dtype: torch.dtype) -> None:
    state = torch.get_rng_state()
    checks = by_name(tmp_path / "out", dtype=dtype, need_lse=dtype != torch.float16)
    assert list(checks) == ["memory", "attention", "decode", "output"]
    assert all(check.ok and not check.remedy for check in checks.values()), checks
    assert "GB free" in checks["memory"].detail
    assert str(dtype).removeprefix("torch.") in checks["attention"].detail
    assert list((tmp_path / "out" / ".lynx").iterdir()) == []
    assert torch.equal(torch.get_rng_state(), state)


def _tf32(q: Any, k: Any, v: Any, need_lse: bool) -> Any:
    """Inputs cut to TF32's ten bits, as a kernel in fp32 must not do."""
    return sdpa(*((t.view(torch.int32) & ~0x1FFF).view(torch.float32) for t in (q, k, v)), need_lse)  # type: ignore[call-arg]


def _no_image(q: Any, k: Any, v: Any, need_lse: bool) -> Any:
    raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with …")


def _ignores_tail(q: Any, k: Any, v: Any, need_lse: bool) -> Any:
    return sdpa(q, k[:, :256], v[:, :256], need_lse)


BROKEN: dict[str, tuple[Attention, str, str]] = {
    "garbage": (lambda q, k, v, lse: (torch.randn_like(q), None), "differs from the CPU's fp32 result", "--attention"),
    "not a number": (lambda q, k, v, lse: (q * torch.nan, None), "values that are not finite", "--attention"),
    "another shape": (lambda q, k, v, lse: (q[:, 1:], None), "has shape", "--attention"),
    "TF32": (_tf32, "differs from the CPU's fp32 result", "--attention"),
    "the last keys left out": (_ignores_tail, "differs from the CPU's fp32 result", "--attention"),
    "no code for the card": (_no_image, "no kernel image is available", "Install a torch build"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_kernel(tmp_path: Path, kind: str) -> None:
    kernel, detail, remedy = BROKEN[kind]
    checks = by_name(tmp_path, kernel)
    assert [name for name, check in checks.items() if not check.ok] == ["attention"]
    assert detail in checks["attention"].detail
    assert "\n" not in checks["attention"].detail
    assert remedy in checks["attention"].remedy


def test_a_kernel_with_a_wrong_log_sum_exp(tmp_path: Path) -> None:
    def natural(q: Any, k: Any, v: Any, need_lse: bool) -> Any:
        out, lse = sdpa(q, k, v, True)
        assert lse is not None
        return out, lse / 0.6931  # base 2

    assert by_name(tmp_path, natural)["attention"].ok
    failed = by_name(tmp_path, natural, need_lse=True)["attention"]
    assert (failed.ok, "log-sum-exp differs" in failed.detail) == (False, True)
    missing = by_name(tmp_path, lambda q, k, v, lse: (sdpa(q, k, v, False)[0], None), need_lse=True)["attention"]
    assert (missing.ok, missing.detail) == (False, "kernel sdpa returns no log-sum-exp")


def test_a_decoder_that_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = selfcheck.AutoencoderKLWan.decode
    calls: list[int] = []

    def wrong_on_the_device(self: Any, latents: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        calls.append(1)
        video = right(self, latents, return_dict=False)[0]
        return (video if len(calls) == 1 else video.bfloat16() * 0.9,)  # the first call is the CPU's

    monkeypatch.setattr(selfcheck.AutoencoderKLWan, "decode", wrong_on_the_device)
    failed = by_name(tmp_path, device=torch.device("cpu", 0))["decode"]  # which counts as another device
    assert (failed.ok, "decoding differs" in failed.detail, "cuDNN" in failed.remedy) == (False, True, True)

    def no_engine(self: Any, latents: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        raise RuntimeError("GET was unable to find an engine to execute this computation")

    monkeypatch.setattr(selfcheck.AutoencoderKLWan, "decode", no_engine)
    failed = by_name(tmp_path)["decode"]
    assert (failed.ok, "cuDNN" in failed.remedy) == (False, True)


def test_a_gpu_that_is_missing(tmp_path: Path) -> None:
    checks = {
        check.name: check for check in check_rank(torch.device("cuda", 99), torch.float32, "sdpa", sdpa, tmp_path)
    }
    assert {name: check.ok for name, check in checks.items()} == {
        "memory": False, "attention": False, "decode": False, "output": True
    }  # fmt: skip
    assert not any("lynx-render doctor" in check.remedy for check in checks.values())


def test_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(selfcheck.ALLOCATION_BYTES, "cpu", 2**60)
    failed = by_name(tmp_path)["memory"]
    assert not failed.ok
    assert "GB free" in failed.remedy


def test_output_folders_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    failed = by_name(tmp_path / "file")["output"]
    assert (failed.ok, failed.remedy) == (False, "Choose another folder.")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    failed = by_name(tmp_path / "out")["output"]
    assert (failed.ok, "Free some space" in failed.remedy) == (False, True)
    assert list((tmp_path / "out" / ".lynx").iterdir()) == []

    monkeypatch.undo()
    monkeypatch.setattr(Path, "read_bytes", lambda self: b"other")
    assert "reads back other bytes" in by_name(tmp_path / "out")["output"].detail


def _all_gangs(rank: int, store: dist.Store) -> dict[str, list[Check]]:
    """What each of two ranks finds in good gangs, beside a peer that sends wrong values, and beside one that hangs."""
    found = {}
    for name, layout in LAYOUTS.items():
        member = xdit.join(
            layout, rank=rank, store=dist.PrefixStore(name, store), device=CPU, transformer_config=CONFIG
        )
        found[name] = check_group(CPU, member.groups)
        xdit.leave()
    for name, peer in (("liar", _lie), ("sleeper", lambda: store.wait(["checked"]))):
        dist.init_process_group("gloo", store=dist.PrefixStore(name, store), rank=rank, world_size=2)
        groups = {"sequence": dist.group.WORLD, "ulysses": dist.group.WORLD}
        if rank == 1:
            peer()
        else:
            found[name] = check_group(CPU, groups, timedelta(seconds=0.5 if name == "sleeper" else 60))
        dist.barrier() if name == "liar" else store.set("checked", "yes")
        dist.destroy_process_group()
    return found


LAYOUTS = {"ulysses": Layout(ulysses=2), "ring": Layout(ring=2), "guidance": Layout(guidance=2)}


def _lie() -> None:
    for exchanging in (False, True):
        dist.all_reduce(torch.tensor([7.0]))
        dist.all_gather([torch.empty(1), torch.empty(1)], torch.tensor([2.0]))
        if exchanging:
            dist.all_to_all_single(torch.empty(2), torch.tensor([2.0, 2.0]))


@pytest.fixture(scope="module")
def gangs() -> list[dict[str, list[Check]]]:
    return run_gang(2, _all_gangs)


def test_good_gangs(gangs: list[dict[str, list[Check]]]) -> None:
    for found in gangs:
        assert all(check.ok for name in LAYOUTS for check in found[name]), found
        names = {name: [check.name for check in found[name]] for name in LAYOUTS}
        assert names == {
            "ulysses": ["sequence group", "ulysses group"],
            "ring": ["sequence group", "ring group"],
            "guidance": ["guidance group"],
        }
        assert found["ring"][1].detail == "all_reduce, all_gather, all_to_all over 2 ranks"


def test_a_peer_that_sends_a_wrong_value(gangs: list[dict[str, list[Check]]]) -> None:
    first, second = gangs[0]["liar"]
    assert first.detail == "all_reduce over 2 ranks gave [8.0], expected [3.0]"
    assert (first.ok, "link" in first.remedy) == (False, True)
    assert second.name == "ulysses group"  # the ranks are still in step


def test_a_peer_that_does_not_answer(gangs: list[dict[str, list[Check]]]) -> None:
    (only,) = gangs[0]["sleeper"]
    assert (only.name, only.ok) == ("sequence group", False)
    assert "rank" in only.remedy


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        ("RuntimeError: Found no NVIDIA driver on your system.", "Install the NVIDIA driver"),
        ("The NVIDIA driver on your system is too old (found version 12020).", "Update the driver"),
        ("CUDA error: CUDA driver version is insufficient for CUDA runtime version", "Update the driver"),
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 256.00 MiB.", "(1.0 of 80.0 GB free)"),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "(1.0 of 80.0 GB free)"),
        ("ncclUnhandledCudaError: NCCL … Cuda failure 2 'out of memory'", "(1.0 of 80.0 GB free)"),
        ("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED", "Reinstall torch"),
        ("ncclSystemError: System call (e.g. socket, malloc) or external library call failed", "NCCL_DEBUG=INFO"),
        ("OSError: [Errno 30] Read-only file system: '/data/.lynx'", "Make the folder writable"),
        ("OSError: [Errno 122] Disk quota exceeded", "Free some space"),
        ("ImportError: flash_attn_2_cuda.so: undefined symbol: _ZN3c10", "--attention"),
        ("ImportError: libcudart.so.12: cannot open shared object file: No such file or directory", "Install the pac"),
        ("CUDA error: uncorrectable ECC error encountered", "may be faulty"),
        ("ClusterError: ffmpeg not found at /x: reinstall imageio-ffmpeg", "Each machine of the run needs ffmpeg."),
        ("RenderError: cannot encode: ffmpeg ended with status 1", "This ffmpeg cannot encode the video."),
        ("ValueError: something new", "Run lynx-render doctor on node-7."),
    ],
)
def test_remedies(error: str, remedy: str) -> None:
    assert remedy in remedy_for(error, host="node-7", free="1.0 of 80.0 GB free")
