"""Addresses at which processes listen."""

from __future__ import annotations

import contextlib
import ipaddress
import socket

import psutil


def listeners(process: psutil.Process) -> list[tuple[str, str]]:
    """(process, address) of every socket that this process and its descendants take connections or datagrams on."""
    found = []
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # Ray ends workers that have nothing to do
            for each in one.net_connections("inet"):
                if each.status == psutil.CONN_LISTEN or (each.type == socket.SOCK_DGRAM and not each.raddr):
                    found.append((one.name(), each.laddr.ip))
    return found


def is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback
