"""One driver per output folder, whatever became of the last one."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import lynx_parallel.output.lock
from lynx_parallel.errors import ClusterError
from lynx_parallel.output.lock import HEARTBEAT_S, STALE_LOCK_S, Lock, _namespace, _started


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "out" / ".lynx"
    folder.mkdir(parents=True)
    return folder / "lock"


def holder(**changes: Any) -> dict[str, Any]:
    """What this very process would write."""
    mine = {
        "host": socket.gethostname(),
        "namespace": _namespace(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }
    return {**mine, **changes}


def leave(path: Path, content: Any, age: float = 0.0) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    os.utime(path, (time.time() - age, time.time() - age))


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def assert_free(path: Path) -> None:
    with Lock(path):
        assert json.loads(path.read_text()) == holder()
    assert os.listdir(path.parent) == []


def assert_held(path: Path, words: str) -> None:
    before = path.read_bytes()
    with pytest.raises(ClusterError, match=words) as caught, Lock(path):
        pass
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["lock"]


def test_taken_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / ".lynx" / "lock"
    for _ in range(2):
        assert_free(path)


def test_given_back_after_an_error(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Lock(path):
        raise KeyboardInterrupt
    assert_free(path)


def test_a_living_holder(path: Path) -> None:
    leave(path, holder())
    assert_held(path, f"another driver is at work here: process {os.getpid()} on .*; if it is gone for good, remove ")
    # Stopped by Ctrl-Z, or its machine asleep, it does not beat; it will go on all the same.
    leave(path, holder(), age=10 * STALE_LOCK_S)
    assert_held(path, "at work here")


@pytest.mark.parametrize("done", [False, True])
def test_taken_by_another_while_frozen(path: Path, monkeypatch: pytest.MonkeyPatch, done: bool) -> None:
    """A machine that slept for an hour, say: its driver is to end, and leave the other one's lock alone."""
    monkeypatch.setattr(lynx_parallel.output.lock, "HEARTBEAT_S", 0.02)
    signalled = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: signalled.set())
    lock = Lock(path)
    try:
        lock.__enter__()
        time.sleep(0.2)
        assert not signalled.is_set()
        path.unlink()
        if not done:
            leave(path, holder(host="elsewhere"), age=1000)
        assert signalled.wait(60)
        with pytest.raises(ClusterError, match="removed, or taken by another driver while this one was not heard of"):
            lock.__exit__()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert path.exists() != done
    if not done:
        assert json.loads(path.read_text())["host"] == "elsewhere"
        assert path.stat().st_mtime < time.time() - 900


def test_a_machine_of_the_same_name(path: Path) -> None:
    """Its processes are not seen from here, whatever their numbers: only the heartbeat tells."""
    boot, namespace = holder()["namespace"].split()
    leave(path, holder(namespace=f"{boot[::-1]} {namespace}", pid=dead_pid(), started="12345"))
    assert_held(path, "at work here")


@pytest.mark.parametrize("age", [0, 10 * STALE_LOCK_S])
def test_a_dead_holder(path: Path, age: float) -> None:
    leave(path, holder(pid=dead_pid(), started="12345"), age)
    assert_free(path)


def test_another_process_got_its_number(path: Path) -> None:
    leave(path, holder(started="1"))
    assert_free(path)


def test_a_holder_killed_but_not_reaped(path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    leave(path, holder(pid=process.pid, started=_started(process.pid)))
    assert_held(path, f"process {process.pid} ")
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert_free(path)
    process.communicate()


@pytest.mark.parametrize("elsewhere", [{"host": "elsewhere"}, {"namespace": "pid:[1]"}, {"namespace": None}])
def test_a_holder_out_of_sight(path: Path, elsewhere: dict[str, str]) -> None:
    """On another host, or in a container: only the heartbeat tells."""
    there = holder(pid=dead_pid(), **elsewhere)
    leave(path, there, age=STALE_LOCK_S - 5)
    assert_held(path, f"process {there['pid']} on {there['host']}")
    leave(path, there, age=STALE_LOCK_S + 5)
    assert_free(path)


NONSENSE = [
    "",
    "{",
    "[]",
    "null",
    "{}",
    '{"host": "a", "pid": "x", "started": 1}',
    "[" * 10**5,
    "\0",
    '{"pid": Infinity}',
]


@pytest.mark.parametrize("content", NONSENSE)
def test_a_lock_that_says_nothing(path: Path, content: str) -> None:
    leave(path, content)
    assert_held(path, "an unknown process")
    leave(path, content, age=STALE_LOCK_S + 5)
    assert_free(path)


def test_bytes_that_are_no_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe")
    assert_held(path, "an unknown process")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ClusterError, match=r"Not a directory|File exists"), Lock(tmp_path / "out" / ".lynx" / "lock"):
        pass


def test_disk_full(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(ClusterError, match="No space left on device"), Lock(path):
            pass
    assert_free(path)


def test_heartbeat(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert HEARTBEAT_S * 3 < STALE_LOCK_S
    monkeypatch.setattr(lynx_parallel.output.lock, "HEARTBEAT_S", 0.01)
    with Lock(path):
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 5
        while path.stat().st_mtime < time.time() - 60:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not [thread for thread in threading.enumerate() if getattr(thread, "_target", None) == Lock._beat]


def contend(path: Path, gate: Any, results: Any, release: Any) -> None:
    gate.wait()
    try:
        with Lock(path):
            results.put(os.getpid())
            release.wait()
    except ClusterError:
        results.put(None)


@pytest.mark.parametrize("stale", [False, True])
def test_exactly_one_of_many_wins(path: Path, stale: bool) -> None:
    context = multiprocessing.get_context("fork")
    for _ in range(10):
        if stale:
            leave(path, holder(pid=dead_pid(), started="1"))
        gate, results, release = context.Barrier(6), context.Queue(), context.Event()
        arguments = (path, gate, results, release)
        processes = [context.Process(target=contend, args=arguments, daemon=True) for _ in range(6)]
        for process in processes:
            process.start()
        try:
            winners = [pid for pid in (results.get(timeout=30) for _ in processes) if pid]
            assert len(winners) == 1
            assert json.loads(path.read_text())["pid"] == winners[0]
        finally:
            release.set()
            for process in processes:
                process.join()
        assert os.listdir(path.parent) == []


@pytest.mark.parametrize("point", ["_holder", "marker"])
def test_the_slower_of_two_does_not_remove_the_faster_ones_lock(
    path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """Both have read the stale lock; one takes it over, and only then does the other go on."""
    leave(path, holder(pid=dead_pid(), started="1"))
    faster, interrupted = Lock(path), []

    def overtake() -> None:
        if not interrupted:
            interrupted.append(True)
            faster.__enter__()

    if point == "_holder":
        real = lynx_parallel.output.lock._holder

        def slow(text: bytes) -> Any:
            found = real(text)
            overtake()
            return found

        monkeypatch.setattr(lynx_parallel.output.lock, "_holder", slow)
    else:
        real_remove = Lock._remove

        def slow_remove(self: Lock, seen: os.stat_result) -> None:
            overtake()
            real_remove(self, seen)

        monkeypatch.setattr(Lock, "_remove", slow_remove)
    with pytest.raises(ClusterError, match=f"process {os.getpid()} "), Lock(path):
        pass
    assert interrupted
    assert json.loads(path.read_text()) == holder()
    faster.__exit__()
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("age", [0, STALE_LOCK_S + 5])
def test_killed_while_removing_a_stale_lock(path: Path, age: float) -> None:
    leave(path, holder(pid=dead_pid(), started="1"))
    status = path.stat()
    marker = path.with_name(f"lock.{status.st_ino}-{status.st_mtime_ns}")
    leave(marker, "", age)
    if age:
        assert_free(path)
    else:
        with pytest.raises(ClusterError, match="another driver has just taken this output folder"), Lock(path):
            pass
        assert marker.exists()


def test_a_killed_driver_leaves_a_lock_that_the_next_one_takes(path: Path) -> None:
    code = (
        "import sys, time, pathlib; from lynx_parallel.output.lock import Lock\n"
        "with Lock(pathlib.Path(sys.argv[1])): print(flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    assert_held(path, f"process {process.pid} ")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert path.exists()
    assert_free(path)
