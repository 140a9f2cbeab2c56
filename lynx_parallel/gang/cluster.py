"""Ray, started here or joined, and left without a trace."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lynx_parallel.errors import ClusterError, first_line
from lynx_parallel.gang.reaper import reaped

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
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        with _joined(address):
            yield False
        return
    # Ray replaces a loopback address by the machine's own, and then listens on every interface, except where it takes
    # clusters of several machines for impossible. Read when ray is imported.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    # A folder of our own, short for the socket path limit, so that nothing stays behind.
    folder = tempfile.mkdtemp(prefix="lynx-ray-", dir="/tmp")
    with reaped(Path(folder)), _joined(
        address, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, _node_ip_address="127.0.0.1",
        _temp_dir=folder,
    ):  # fmt: skip
        yield True


@contextlib.contextmanager
def _joined(address: str, **options: Any) -> Iterator[None]:
    import ray

    with contextlib.redirect_stdout(sys.stderr):  # Ray prints what its raylets complain of
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, namespace="lynx-parallel", **options)
            yield
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            if ray.is_initialized():
                raise
            raise ClusterError(f"Ray at {address!r} cannot be used: {first_line(error)}") from error
        finally:
            ray.shutdown()
