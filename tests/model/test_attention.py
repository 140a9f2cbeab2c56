"""The choice of the attention kernel, without a GPU: facts and broken packages are given, the probe really runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lynx_parallel.errors import ClusterError
from lynx_parallel.model.attention import Attention, Facts, candidates, choose_kernel, find_facts, flash, probe, sdpa

CPU = torch.device("cpu")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
ALL, FLASH, NONE = frozenset({"flash3", "flash"}), frozenset({"flash"}), frozenset[str]()
HOPPER = Facts("cuda", (9, 0), BF16, 92000, ALL)
AMPERE = Facts("cuda", (8, 0), BF16, 92000, FLASH)


@pytest.mark.parametrize(
    ("facts", "order"),
    [
        (HOPPER, "flash3 cudnn flash sdpa"),
        (HOPPER._replace(dtype=FP16), "flash3 cudnn flash sdpa"),
        (HOPPER._replace(dtype=FP32), "sdpa"),  # the demo and parity: every other kernel refuses fp32
        (HOPPER._replace(installed=FLASH), "cudnn flash sdpa"),  # the [flash] extra must not win
        (HOPPER._replace(installed=NONE), "cudnn sdpa"),
        (HOPPER._replace(cudnn=91501), "flash3 cudnn flash sdpa"),
        (HOPPER._replace(cudnn=91500), "flash3 flash sdpa"),
        (HOPPER._replace(cudnn=0, installed=NONE), "sdpa"),
        (HOPPER._replace(capability=(10, 0)), "cudnn flash sdpa"),
        (HOPPER._replace(capability=(12, 0), cudnn=91002), "flash sdpa"),
        (AMPERE, "flash sdpa"),
        (AMPERE._replace(capability=(8, 9), installed=ALL), "flash sdpa"),
        (AMPERE._replace(installed=NONE), "sdpa"),
        (AMPERE._replace(dtype=FP32), "sdpa"),
        (AMPERE._replace(capability=(7, 5)), "sdpa"),
        (Facts("cpu", (0, 0), BF16, 0, ALL), "sdpa"),
        (Facts("cpu", (0, 0), FP32, 0, NONE), "sdpa"),
    ],
)
def test_the_order_of_kernels(facts: Facts, order: str) -> None:
    assert candidates(facts) == order.split()


def test_a_folder_without_a_module_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashAttention 4 alone leaves such a folder."""
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert "flash" not in find_facts(CPU, BF16).installed
    (tmp_path / "flash_attn" / "__init__.py").touch()
    assert "flash" in find_facts(CPU, BF16).installed


BREAKS = {
    "raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c10\\nsecond line')": (
        "ImportError: flash_attn_2_cuda.so: undefined symbol: _ZN3c10"
    ),
    "raise OSError('libcudart.so.12: cannot open shared object file')": (
        "OSError: libcudart.so.12: cannot open shared object file"
    ),
    "def flash_attn_func(*_, **__): raise RuntimeError('CUDA error: no kernel image is available')": (
        "RuntimeError: CUDA error: no kernel image is available"
    ),
    "def flash_attn_func(q, k, v): return q": "wrong result for 130 keys",
    "def flash_attn_func(q, k, v): return q * float('nan')": "wrong result for 130 keys",
}


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A package flash_attn of this source; returns what is wrong with it."""
    (tmp_path / "flash_attn.py").write_text(request.param)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    return BREAKS[request.param]


@pytest.mark.parametrize("broken", BREAKS, indirect=True)
def test_a_broken_package_falls_back_with_a_warning(broken: str) -> None:
    kernel = choose_kernel("auto", CPU, BF16, facts=AMPERE)
    assert (kernel.name, kernel.attention) == ("sdpa", sdpa)
    assert kernel.warnings == (
        f"attention kernel flash does not work on cpu in bfloat16: {broken}. Attention uses sdpa instead.",
    )


@pytest.mark.parametrize("broken", BREAKS, indirect=True)
def test_a_broken_package_asked_for_by_name_is_one_line(broken: str) -> None:
    with pytest.raises(ClusterError) as caught:
        choose_kernel("flash", CPU, BF16, facts=AMPERE, kernels={"flash": flash, "sdpa": sdpa})
    wanted = f"--attention flash: not available on cpu in bfloat16: {broken}. Available: sdpa."
    assert str(caught.value) == wanted


def test_a_package_that_is_not_installed_needs_no_warning() -> None:
    assert choose_kernel("auto", CPU, BF16, facts=AMPERE._replace(installed=NONE)).warnings == ()


@pytest.mark.parametrize(
    ("name", "facts", "reason"),
    [
        ("flash3", Facts("cpu", (0, 0), FP32, 0, ALL), "runs on CUDA only, not on cpu"),
        ("flash", AMPERE._replace(dtype=FP32), "does not take float32"),
        ("flash", AMPERE._replace(installed=NONE), "the package flash_attn is not installed"),
        ("flash", AMPERE._replace(capability=(7, 5)), "needs compute capability 8.0 or newer, found 7.5"),
        ("flash3", HOPPER._replace(capability=(10, 0)), "needs compute capability 9.x (Hopper), found 10.0"),
        (
            "cudnn",
            HOPPER._replace(cudnn=91002),
            "needs cuDNN newer than 9.15 for lengths that 128 does not divide, found version 91002",
        ),
    ],
)
def test_a_kernel_that_cannot_run_here(name: Any, facts: Facts, reason: str) -> None:
    kernels: dict[str, Attention] = {name: _never, "sdpa": sdpa}
    with pytest.raises(ClusterError) as caught:
        choose_kernel(name, CPU, facts.dtype, facts=facts, kernels=kernels)
    dtype = str(facts.dtype).removeprefix("torch.")
    assert str(caught.value) == f"--attention {name}: not available on cpu in {dtype}: {reason}. Available: sdpa."


def _never(*_: Any) -> Any:
    raise AssertionError("it was called")


def test_a_kernel_that_works_is_taken_by_name_and_by_auto() -> None:
    def good(*inputs: Any) -> Any:
        return sdpa(*inputs)

    kernels: dict[str, Attention] = {"flash3": _never, "cudnn": good, "flash": _never, "sdpa": sdpa}
    auto = choose_kernel("auto", CPU, BF16, facts=HOPPER, kernels=kernels, need_lse=True)
    assert (auto.name, auto.attention) == ("cudnn", good)
    assert auto.warnings == (
        "attention kernel flash3 does not work on cpu in bfloat16: AssertionError: it was called. "
        "Attention uses cudnn instead.",
    )
    by_name = choose_kernel("cudnn", CPU, BF16, facts=HOPPER, kernels=kernels)
    assert (by_name.name, by_name.attention, by_name.warnings) == ("cudnn", good, ())


def test_no_kernel_works() -> None:
    with pytest.raises(ClusterError, match=r"^attention kernel sdpa does not work on cpu in float32: AssertionError"):
        choose_kernel("auto", CPU, FP32, kernels={"sdpa": _never})


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize("need_lse", [False, True])
def test_sdpa_works_on_the_cpu(dtype: torch.dtype, need_lse: bool) -> None:
    state = torch.random.get_rng_state()
    assert choose_kernel("auto", CPU, dtype, need_lse=need_lse).name == "sdpa"
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_log_sum_exp_of_sdpa() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, length, 3, 16) for length in (7, 33, 33))
    out, lse = sdpa(q, k, v, True)
    wanted = torch.logsumexp(torch.einsum("blhd,bshd->bhls", q, k) / 4, dim=-1)
    assert lse is not None
    torch.testing.assert_close(lse, wanted)
    torch.testing.assert_close(out, sdpa(q, k, v, False)[0])


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_the_log_sum_exp_of_sdpa_on_a_gpu_has_the_length_of_the_queries(dtype: torch.dtype) -> None:
    """Shapes only: meta tensors take the way of CUDA. The efficient kernel, fp32's, pads it to a multiple of 32."""
    q, k = (torch.empty(1, length, 2, 16, device="meta", dtype=dtype) for length in (33, 70))
    out, lse = sdpa(q, k, k, True)
    assert lse is not None
    assert (out.shape, lse.shape, lse.dtype) == (q.shape, (1, 2, 33), FP32)


def without_last_key(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, need_lse: bool) -> Any:
    """What a kernel gives that drops the end of a block."""
    return sdpa(q, k[:, :-1], v[:, :-1], need_lse)


def no_lse(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, need_lse: bool) -> Any:
    return sdpa(q, k, v, False)


def padded_lse(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, need_lse: bool) -> Any:
    out, lse = sdpa(q, k, v, need_lse)
    return out, None if lse is None else torch.nn.functional.pad(lse, (0, 30))


def base_two_lse(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, need_lse: bool) -> Any:
    out, lse = sdpa(q, k, v, need_lse)
    return out, None if lse is None else lse * 1.4427


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_the_probe_sees_wrong_results(dtype: torch.dtype) -> None:
    assert probe(sdpa, CPU, dtype, True) is None
    assert probe(without_last_key, CPU, dtype, False) == "wrong result for 130 keys"
    for attention in (no_lse, padded_lse, base_two_lse):
        assert probe(attention, CPU, dtype, True) == "wrong log-sum-exp for 130 keys"
        assert probe(attention, CPU, dtype, False) is None
