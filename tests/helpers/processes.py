"""Runs a function in N processes that share a file store: a gang without Ray."""

from __future__ import annotations

import os
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from tests.helpers.fork_server import Fork


def _child(rank: int, world: int, function: Callable[..., Any], args: tuple[Any, ...], folder: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        store = dist.FileStore(f"{folder}/store", world)
        torch.save(function(rank, store, *args), f"{folder}/{rank}.pt")
    except BaseException:
        Path(f"{folder}/{rank}.error").write_text(traceback.format_exc())
        raise


def run_gang(world: int, function: Callable[..., Any], *args: Any, fresh: bool = False) -> list[Any]:
    """Runs ``function(rank, store, *args)`` in ``world`` processes, and returns their results by rank.

    The processes are forks of a server that has imported what ranks import. A rank that raises fails the test with its
    traceback.

    Args:
        function: of a module's top level.
        fresh: each process starts without any import.
    """
    with tempfile.TemporaryDirectory() as folder:
        ranks = [_start((r, world, function, args, folder), fresh) for r in range(world)]
        deadline = time.monotonic() + 300
        while any(rank.is_alive() for rank in ranks) and time.monotonic() < deadline:
            if any(not rank.is_alive() and rank.exitcode for rank in ranks):
                time.sleep(2)  # its peers' own errors may tell more; they would wait for the timeout
                break
            time.sleep(0.1)
        alive = [rank for rank in ranks if rank.is_alive()]
        for rank in alive:
            rank.kill()
        errors = [path.read_text() for path in sorted(Path(folder).glob("*.error"))]
        assert not errors, "\n".join(errors)
        assert not alive, f"{len(alive)} of {world} ranks still ran after 300 s"
        return [torch.load(f"{folder}/{r}.pt", weights_only=False) for r in range(world)]


def _start(arguments: tuple[Any, ...], fresh: bool) -> Any:
    if not fresh:
        return Fork("heavy", (_child, arguments), os.getcwd(), os.environ, [0, 1, 2])
    process = mp.get_context("spawn").Process(target=_child, args=arguments)
    process.start()
    return process
