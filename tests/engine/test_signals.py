"""What a closed terminal does to a run."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lynx_parallel.engine.signals import signals
from lynx_parallel.view.lines import Lines

PRINTS = """
import signal, sys, time
from lynx_parallel.view.lines import Lines
said = []
signal.signal(signal.SIGHUP, lambda *_: said.append("hung up"))
say = Lines(sys.stdout)
say("before")
while not said:  # pause() would miss a signal that has come already
    time.sleep(0.01)
say("after")
sys.stderr.write(said[0])
"""


def test_a_hangup_ends_a_run_but_not_under_nohup() -> None:
    assert signal.SIGHUP in signals()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signals() == [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_line_for_a_terminal_that_is_gone_is_lost_and_no_more() -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", PRINTS], stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    assert os.read(ours, 100).startswith(b"before")
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    _, errors = process.communicate(timeout=60)
    assert errors.startswith(b"hung up")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_line_for_a_full_disk_is_lost_and_no_more() -> None:
    with Path("/dev/full").open("wb", buffering=0) as raw:
        Lines(os.fdopen(os.dup(raw.fileno()), "w", closefd=False))("a line")
