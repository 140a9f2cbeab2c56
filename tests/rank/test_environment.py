"""Environment variables of rank processes, and the network interface that they use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lynx_parallel.rank.environment import rank_environment, threads_here


def test_a_rank_on_the_cpu_sees_no_gpu_even_where_the_driver_does() -> None:
    given = {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert rank_environment("cpu", 2, given)["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in rank_environment("cuda", 2, given)  # Ray gives each rank its own


def test_what_the_user_has_set_stays() -> None:
    assert rank_environment("cuda", None, {})["NCCL_DEBUG"] == "WARN"
    assert "NCCL_DEBUG" not in rank_environment("cuda", None, {"NCCL_DEBUG": "INFO"})
    assert "PYTORCH_ALLOC_CONF" not in rank_environment("cuda", None, {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"})
    assert "MALLOC_ARENA_MAX" not in rank_environment("cpu", None, {"MALLOC_ARENA_MAX": "4"})
    assert rank_environment("cpu", None, {})["OMP_WAIT_POLICY"] == "passive"
    assert "OMP_WAIT_POLICY" not in rank_environment("cpu", None, {"OMP_WAIT_POLICY": "active"})


def test_threads_are_given_only_where_the_machine_is_known() -> None:
    assert rank_environment("cpu", 3, {})["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in rank_environment("cpu", None, {})


def test_ranks_share_the_cores_of_their_own_machine() -> None:
    cores = len(os.sched_getaffinity(0))
    assert threads_here(1) == cores
    assert threads_here(0) == cores
    assert threads_here(10 * cores) == 1


@pytest.mark.parametrize(("address", "nccl"), [("127.0.0.1", "lo"), ("192.0.2.77", "")])
def test_collectives_are_bound_to_the_interface_of_the_rank(address: str, nccl: str) -> None:
    code = (
        "import os; from lynx_parallel.rank.environment import bind_network; "
        f"bind_network({address!r}); print(os.environ.get('NCCL_SOCKET_IFNAME', ''))"
    )
    bare = {name: value for name, value in os.environ.items() if "IFNAME" not in name}
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=bare)
    assert made.stdout.strip() == nccl
