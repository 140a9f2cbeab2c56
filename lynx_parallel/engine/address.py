"""Finds the Ray cluster that a run joins, and checks that its head answers. Imports Ray only on use."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

from lynx_parallel.errors import Unreachable
from lynx_parallel.inputs.cluster import HOST_PORT
from lynx_parallel.text import first_line

CONNECT_WITHIN_S = 5.0
"""Seconds for a TCP connection to the head."""
REACH_WITHIN_S = 20.0
"""Seconds for the head's first answer, name lookup and connection included."""
BUSY_S = 5.0
"""Seconds for which calls to a head that refuses them are repeated, because it may be starting."""
_IS_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"


@dataclass(frozen=True)
class Address:
    """Address of a Ray cluster.

    Attributes:
        value: ``local`` (started for this run), ``auto`` (a cluster that this machine belongs to), or ``host:port``.
        source: the option or variable that gave it; empty for the default.
    """

    value: str = "local"
    source: str = ""

    @classmethod
    def chosen(cls, option: str | None, given: Mapping[str, str] = os.environ) -> Address:
        """Returns the address in the option, else in ``RAY_ADDRESS``, else ``local``.

        ``RAY_ADDRESS`` also replaces ``auto``, as in Ray itself: in a submitted job, it holds the cluster's address.

        Raises:
            Unreachable: ``RAY_ADDRESS`` holds no address that can be joined.
        """
        variable = given.get("RAY_ADDRESS", "")
        if option and not (option == "auto" and variable):
            return cls(option, "--address")
        if not variable:
            return cls()
        if variable.startswith(("http://", "https://")):
            raise Unreachable(
                f"RAY_ADDRESS={variable}: this is the address of a dashboard, which takes jobs only. Use `ray job "
                "submit`, or unset RAY_ADDRESS to render on this machine alone."
            )
        if variable not in ("auto", "local") and not HOST_PORT.fullmatch(variable):
            client = "Ray Client (ray://) is not supported: " * variable.startswith("ray://")
            raise Unreachable(
                f"RAY_ADDRESS={variable}: {client}must be auto, local or host:port. Correct it, or unset it to render "
                "on this machine alone."
            )
        return cls(variable, "RAY_ADDRESS")

    def __str__(self) -> str:
        return f"{self.value} ({self.source})"

    def refused(self, reason: str, remedy: str = "Start Ray there") -> Unreachable:
        """Returns the error for a cluster that cannot be joined, with what to do."""
        alone = "unset RAY_ADDRESS" if self.source == "RAY_ADDRESS" else "use --address local"
        end = f"{remedy}, correct {self.source}, or {alone} to render on this machine alone."
        return Unreachable(f"Ray at {self}: {reason.rstrip('.')}. {end}")


def check_head(address: Address) -> None:
    """Checks that a Ray head answers. Takes ``REACH_WITHIN_S`` at most, unless the name lookup takes longer.

    Raises:
        Unreachable: nothing listens, nothing answers, or the answer is not that of a Ray head.
    """
    deadline = time.monotonic() + REACH_WITHIN_S
    place = address.value if address.value != "auto" else _own_cluster(address)
    host, _, port = place.rpartition(":")
    _connect(address, host.strip("[]"), int(port))
    if not _uses_tls():  # else only Ray knows the certificates
        _ask(address, place, deadline)


def still_answers(address: Address) -> bool:
    """Returns whether a head that answered before does so now, within ``CONNECT_WITHIN_S``."""
    try:
        place = address.value if address.value != "auto" else _own_cluster(address)
        host, _, port = place.rpartition(":")
        _connect(address, host.strip("[]"), int(port))
        if not _uses_tls():
            _ask(address, place, time.monotonic() + CONNECT_WITHIN_S)
    except Unreachable:
        return False
    return True


def _uses_tls() -> bool:
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def _own_cluster(address: Address) -> str:
    """Returns host:port of the cluster that this machine belongs to."""
    from ray._private.services import canonicalize_bootstrap_address

    try:
        found = canonicalize_bootstrap_address("auto")
    except (ValueError, OSError):
        found = None
    if found is None:
        raise address.refused("no Ray runs on this machine", "Start it")
    return str(found)


def _connect(address: Address, host: str, port: int) -> None:
    if not 0 < port < 2**16:
        raise address.refused("the port must be 1 to 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise address.refused(f"the host name cannot be resolved ({reason})") from None
    deadline, reason = time.monotonic() + CONNECT_WITHIN_S, ""
    for family, kind, protocol, _, place in found:
        try:
            with socket.socket(family, kind, protocol) as connection:
                connection.settimeout(max(0.1, deadline - time.monotonic()))
                connection.connect(place)
                return
        except ConnectionRefusedError:
            reason = "connection refused, no program listens there"
        except TimeoutError:
            reason = f"no connection within {CONNECT_WITHIN_S:.0f} s, the machine is down or a firewall is between"
        except OSError as error:
            reason = error.strerror or first_line(error)
    raise address.refused(reason)


def _ask(address: Address, place: str, deadline: float) -> None:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it would print to standard error. Read when grpc is imported.
    import grpc

    busy_until = time.monotonic() + BUSY_S
    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        is_alive = channel.unary_unary(_IS_ALIVE)
        while True:
            try:
                is_alive(b"", timeout=max(0.1, deadline - time.monotonic()))
                return
            except grpc.RpcError as error:
                code = error.code()
            if code == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise address.refused(f"it accepts connections, but does not answer within {REACH_WITHIN_S:.0f} s")
            if code == grpc.StatusCode.UNIMPLEMENTED:
                raise address.refused("what answers there is no Ray head")
            if code != grpc.StatusCode.UNAVAILABLE:
                return  # it answers; ray.init reports what is missing, for example a token
            if time.monotonic() > busy_until:
                raise address.refused("what answers there is no Ray head. A head listens on port 6379 by default")
            time.sleep(0.5)
