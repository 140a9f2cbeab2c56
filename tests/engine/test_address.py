"""Which cluster a run joins, and what a head that is none says."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from lynx_parallel.engine import address
from lynx_parallel.engine.address import Address, check_head, still_answers
from lynx_parallel.errors import ClusterError


@pytest.mark.parametrize(
    ("option", "variable", "found"),
    [
        (None, "", Address("local", "")),
        (None, "192.0.2.1:6379", Address("192.0.2.1:6379", "RAY_ADDRESS")),
        (None, "auto", Address("auto", "RAY_ADDRESS")),
        ("head:6379", "192.0.2.1:6379", Address("head:6379", "--address")),
        ("local", "192.0.2.1:6379", Address("local", "--address")),
        ("auto", "", Address("auto", "--address")),
        ("auto", "192.0.2.1:6379", Address("192.0.2.1:6379", "RAY_ADDRESS")),  # a submitted job
    ],
)
def test_the_option_wins_over_the_variable(option: str | None, variable: str, found: Address) -> None:
    assert Address.chosen(option, {"RAY_ADDRESS": variable}) == found


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("http://127.0.0.1:8265", "takes jobs only. Use `ray job submit`, or unset RAY_ADDRESS"),
        ("https://head", "takes jobs only"),
        ("ray://head:10001", "Ray Client (ray://) is not supported"),
        ("head", "must be auto, local or host:port"),
    ],
)
def test_a_variable_that_is_no_address_is_refused(variable: str, hint: str) -> None:
    with pytest.raises(ClusterError) as refused:
        Address.chosen(None, {"RAY_ADDRESS": variable})
    assert str(refused.value).startswith(f"RAY_ADDRESS={variable}: ")
    assert hint in str(refused.value)
    assert "\n" not in str(refused.value)


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """A port that takes connections and says nothing: a stopped head, for example."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A port that does not even take connections: its queue is full, as packets behind a firewall are lost."""
    with contextlib.ExitStack() as held:
        server = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = server.getsockname()[1]
        for _ in range(4):
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        yield port


@contextlib.contextmanager
def web() -> Iterator[int]:
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@contextlib.contextmanager
def other_grpc() -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None)


@contextlib.contextmanager
def closed() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield port


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (closed, "connection refused"),
        (silent, "it accepts connections, but does not answer"),
        (black_hole, "no connection within"),
        (web, "what answers there is no Ray head"),
        (other_grpc, "what answers there is no Ray head"),
    ],
)
def test_what_is_no_head_costs_one_line(monkeypatch: pytest.MonkeyPatch, server: object, reason: str) -> None:
    monkeypatch.setattr(address, "CONNECT_WITHIN_S", 1.0)
    monkeypatch.setattr(address, "REACH_WITHIN_S", 2.0)
    monkeypatch.setattr(address, "BUSY_S", 0.1)
    with server() as port:  # type: ignore[operator]
        asked = Address(f"127.0.0.1:{port}", "RAY_ADDRESS")
        with pytest.raises(ClusterError) as refused:
            check_head(asked)
        assert not still_answers(asked)
    line = str(refused.value)
    assert line.startswith(f"Ray at 127.0.0.1:{port} (RAY_ADDRESS): {reason}")
    assert line.endswith("or unset RAY_ADDRESS to render on this machine alone.")
    assert "\n" not in line


def test_a_name_that_is_not_known_and_a_port_that_is_none() -> None:
    with pytest.raises(ClusterError, match=r"^Ray at no-such.invalid:6379 \(--address\): the host name cannot be"):
        check_head(Address("no-such.invalid:6379", "--address"))
    with pytest.raises(ClusterError, match=r"the port must be 1 to 65535.*or use --address local to render"):
        check_head(Address("127.0.0.1:99999", "--address"))


def test_a_head_that_answers_is_no_error() -> None:
    """Also one that refuses the call, for want of a token."""
    for code in (None, grpc.StatusCode.UNAUTHENTICATED):

        def answer(request: bytes, context: grpc.ServicerContext, code: grpc.StatusCode | None = code) -> bytes:
            if code is not None:
                context.abort(code, "no token")
            return b""

        server = grpc.server(ThreadPoolExecutor(1))
        handler = {"CheckAlive": grpc.unary_unary_rpc_method_handler(answer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", handler),))
        head = Address(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", "--address")
        server.start()
        check_head(head)
        assert still_answers(head)
        server.stop(None)
