"""The phases of a run: which comes first, and which end it."""

from __future__ import annotations

import signal

import pytest

from lynx_parallel.engine.run_state import Phase, RunState
from lynx_parallel.engine.summary import Summary


@pytest.fixture
def state() -> RunState:
    return RunState([Summary()])


def test_a_run_begins_with_its_first_gang(state: RunState) -> None:
    assert (state.phase, state.began, state.ends) == (Phase.STARTING, False, False)
    state.gang_started()
    assert (state.phase, state.began, state.ends) == (Phase.RUNNING, True, False)


def test_the_first_reason_is_kept(state: RunState) -> None:
    state.give_up("not tried: 3 shots failed")
    state.give_up("not tried: 4 shots failed")
    assert (state.phase, state.reason) == (Phase.GIVEN_UP, "not tried: 3 shots failed")
    assert state.ends


def test_a_fault_comes_before_giving_up_and_a_stop_before_both() -> None:
    summary = Summary()
    state = RunState([summary])
    state.give_up("not tried")
    state.fault("no gang can form")
    state.fault("another fault")
    assert (state.phase, summary.fault) == (Phase.FAULTY, "no gang can form")
    assert state.ends
    summary.stopped_by = signal.SIGINT
    assert state.phase is Phase.STOPPED
    assert state.stopped
    assert state.ends


def test_a_run_may_end_before_its_first_gang(state: RunState) -> None:
    state.fault("no gang can form")
    assert state.ends
    assert not state.began
