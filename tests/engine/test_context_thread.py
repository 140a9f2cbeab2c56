"""A context in a thread of its own: entered, left, or given up."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

from lynx_parallel.engine import process
from lynx_parallel.engine.context_thread import ContextThread, NotInTime
from lynx_parallel.engine.signals import Interrupted


@pytest.fixture(autouse=True)
def _stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_stuck", [])


@contextlib.contextmanager
def recorded(threads: list[threading.Thread], wait: threading.Event | None = None) -> Iterator[None]:
    threads.append(threading.current_thread())
    if wait is not None:
        wait.wait()
    yield
    threads.append(threading.current_thread())


def test_one_thread_enters_and_leaves() -> None:
    """The kernel ends Ray's processes with the thread that started them."""
    threads: list[threading.Thread] = []
    held = ContextThread(recorded(threads), "test", [])
    held.enter(60)
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()
    assert threads[0].is_alive()
    held.leave(60)
    assert threads == [threads[0]] * 2
    assert not process.gave_up()


def test_a_signal_or_the_time_gives_it_up() -> None:
    end = threading.Event()
    with pytest.raises(Interrupted) as interrupted:
        ContextThread(recorded([], end), "test", [15]).enter(60)
    assert interrupted.value.number == 15
    assert process.gave_up()
    with pytest.raises(NotInTime):
        ContextThread(recorded([], end), "test", []).enter(0.1)
    end.set()


def test_what_it_raises_comes_here() -> None:
    @contextlib.contextmanager
    def fails(error: BaseException) -> Iterator[None]:
        raise error
        yield

    for error in (ValueError("a"), TimeoutError("of its own"), SystemExit(3)):
        with pytest.raises(type(error)) as raised:
            ContextThread(fails(error), "test", []).enter(60)
        assert raised.value is error
    assert not process.gave_up()


def test_one_that_does_not_leave_is_given_up() -> None:
    end = threading.Event()

    @contextlib.contextmanager
    def stays() -> Iterator[None]:
        yield
        end.wait()

    held = ContextThread(stays(), "test", [])
    held.enter(60)
    held.leave(0.1)
    assert process.gave_up()
    end.set()
