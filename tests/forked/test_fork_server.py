"""The stand-in for Python behaves as Python does: streams, exit codes, and its end."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess

import pytest

from tests.helpers.command import wait_for
from tests.helpers.fork_server import _address, python
from tests.helpers.ray_head import free_ports


def format_json(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python(), "-m", "json.tool"], input=text, capture_output=True, text=True, check=False)


def test_streams_and_exit_codes() -> None:
    done = format_json('{"a": 1}')
    assert (done.returncode, done.stdout, done.stderr) == (0, '{\n    "a": 1\n}\n', "")
    failed = format_json("{")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("Expecting property name")


def test_light_processes_have_imported_the_command_line_unless_a_variable_differs() -> None:
    code = "import os, sys; print('lynx_parallel.cli' in sys.modules, os.getcwd(), os.environ.get('ANOTHER'))"
    for more, expected in (({}, "True / None\n"), ({"ANOTHER": "value"}, "False / value\n")):
        done = subprocess.run(
            [python("light"), "-c", code], cwd="/", env=os.environ | more, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_process(number: signal.Signals) -> None:
    code = "import time; print('ready', flush=True); time.sleep(600)"
    with subprocess.Popen(
        [python(), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(60) == 128 + number


def test_a_client_that_dies_ends_no_server() -> None:
    request = pickle.dumps((["-c", "pass"], "/", dict(os.environ)))
    size = len(request).to_bytes(4, "big")
    for sent in (b"", size, size + request[:9], size + request):
        with socket.socket(socket.AF_UNIX) as connection, open(os.devnull) as nothing:
            connection.connect(str(_address("heavy")))
            socket.send_fds(connection, [sent], [nothing.fileno()] * 3)
    assert format_json("1").stdout == "1\n"


def test_the_process_ends_with_its_stand_in() -> None:
    [port] = free_ports(1)

    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    with subprocess.Popen(
        [python(), "-m", "http.server", "--bind", "127.0.0.1", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as server:  # fmt: skip
        wait_for(answers, "the server")
        server.kill()
    wait_for(lambda: not answers(), "its end")
