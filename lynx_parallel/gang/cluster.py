"""Ray, started here or joined, and left without a trace."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator

import psutil

from lynx_parallel.errors import ClusterError

OBJECT_STORE_BYTES = 128 * 2**20
"""Tensors travel as files or collectives; the store carries small results only."""


@contextlib.contextmanager
def ray_cluster(address: str | None) -> Iterator[bool]:
    """Ray for the time of the block: ``address``, else ``RAY_ADDRESS``, else one started in-process.

    Yields:
        Whether it was started here, and so ends with the block, every process of it.

    Raises:
        ClusterError: no Ray at the address, or none could be started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray 2.60 announces GPU visibility changes to come for actors without GPUs on every start.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    address = address or os.environ.get("RAY_ADDRESS") or "local"
    local = address == "local"
    options: dict[str, object] = {}
    folder = None
    if local:
        # A folder of our own, short for the socket path limit, so that nothing stays behind.
        folder = tempfile.mkdtemp(prefix="lynx-ray-", dir="/tmp")
        options = {
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": folder,
        }
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, namespace="lynx-parallel", **options)
        yield local
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        if ray.is_initialized():
            raise
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ClusterError(f"Ray at {address!r} cannot be used: {reason}") from error
    finally:
        # Also where ray.init was broken off: what it had started by then are children of this process.
        started_here = _descendants() if local else []
        ray.shutdown()
        _end(started_here)
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _end(processes: list[psutil.Process]) -> None:
    """Kills what is left of processes that were told to end."""
    _, alive = psutil.wait_procs(processes, timeout=3)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=3)
