"""The store at which the ranks of a gang meet to form a process group."""

from __future__ import annotations

import socket
from datetime import timedelta

import ray
import torch.distributed as dist

COLLECTIVE_TIMEOUT = timedelta(minutes=10)


def open_store() -> dist.TCPStore:
    """Returns a new store of this process, on a free port of this node's address.

    The port is bound before the store is created, so two gangs never compete for one. By default, the store would
    listen on every interface, without asking for a token.
    """
    host = ray.util.get_node_ip_address()
    listening = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = listening.getsockname()[1]
    return dist.TCPStore(
        host, port, None, True, COLLECTIVE_TIMEOUT, wait_for_workers=False, multi_tenant=True,
        master_listen_fd=listening.detach(),
    )  # fmt: skip


def join_store(address: tuple[str, int]) -> dist.TCPStore:
    """Returns a client of another rank's store.

    Args:
        address: host and port of the store.
    """
    return dist.TCPStore(*address, None, False, COLLECTIVE_TIMEOUT)
