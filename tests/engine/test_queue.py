"""What a free gang pulls next."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lynx_parallel.engine.queue import Queue, Slot, Work
from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.plan.digests import ShotDigests
from lynx_parallel.plan.plan import Item


def queue(campaign: Path, shots: str) -> Queue:
    campaign.write_text(campaign.read_text() + f"shots:\n{shots}")
    identity = ShotDigests.of({}, {})
    run = SimpleNamespace(shown=str)
    return Queue(Work(Item(shot, identity, "render"), run) for shot in load_campaign(campaign).shots)  # type: ignore[arg-type]


def name(work: Work | None) -> str | None:
    return work.item.shot.name if work else None


@pytest.mark.parametrize(
    ("own", "taken", "first"),
    [
        (None, set(), "astronaut/pumpkin-t01"),
        (None, {"astronaut"}, "drawn/pumpkin-t01"),
        ("drawn", {"astronaut"}, "drawn/pumpkin-t01"),
        ("drawn", {"drawn"}, "drawn/pumpkin-t01"),
        (None, {"astronaut", "drawn"}, "astronaut/pumpkin-t01"),
        ("gone", set(), "astronaut/pumpkin-t01"),
    ],
)
def test_own_subject_then_one_that_no_other_gang_holds(
    campaign: Path, own: str | None, taken: set[str | None], first: str
) -> None:
    waiting = queue(campaign, '- {subject: "*", prompt: "*"}\n')
    assert name(waiting.pull(Slot(subject=own), taken, 0.0)) == first
    assert len(waiting) == 3
    assert first not in {name(work) for work in waiting.left()}


def test_priority_comes_before_all(campaign: Path) -> None:
    waiting = queue(campaign, '- {subject: astronaut, prompt: "*"}\n- {subject: drawn, prompt: beach, priority: 5}\n')
    slot = Slot(subject="astronaut")
    assert name(waiting.pull(slot, {"drawn"}, 0.0)) == "drawn/beach-t01"
    assert name(waiting.pull(slot, {"drawn"}, 0.0)) == "astronaut/pumpkin-t01"


def test_everything_is_pulled_once(campaign: Path) -> None:
    waiting = queue(campaign, '- {subject: "*", prompt: "*", takes: 3}\n')
    every = {name(work) for work in waiting.left()}
    pulled = [name(waiting.pull(Slot(), set(), 0.0)) for _ in range(12)]
    assert len(waiting) == 0
    assert waiting.pull(Slot(), set(), 0.0) is None
    assert set(pulled) == every
    assert len(pulled) == len(every) == 12


def test_retries_wait_for_their_time_and_come_first_then(campaign: Path) -> None:
    waiting, slot = queue(campaign, '- {subject: astronaut, prompt: "*"}\n'), Slot()
    first = waiting.pull(slot, set(), 0.0)
    assert first is not None
    first.not_before = 10.0
    waiting.retry(first)
    assert len(waiting) == 2
    second = waiting.pull(slot, set(), 9.9)
    assert name(second) == "astronaut/beach-t01"
    assert waiting.pull(slot, set(), 9.9) is None
    assert waiting.pull(slot, set(), 10.0) is first
    assert len(waiting) == 0


def test_a_retry_goes_to_another_gang_where_this_one_has_other_work(campaign: Path) -> None:
    waiting, here, elsewhere = queue(campaign, '- {subject: astronaut, prompt: "*"}\n'), Slot(), Slot()
    failed = waiting.pull(here, set(), 0.0)
    assert failed is not None
    failed.avoid = here
    waiting.retry(failed)
    other = waiting.pull(here, set(), 0.0)
    assert other is not failed
    assert waiting.pull(here, set(), 0.0) is failed  # rather than idle
    waiting.retry(failed)
    assert waiting.pull(elsewhere, set(), 0.0) is failed
