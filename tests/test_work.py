"""What a free gang pulls next."""

from __future__ import annotations

from pathlib import Path

from lynx_parallel.gang.work import Slot, Work, next_work
from lynx_parallel.identity import Identity
from lynx_parallel.parallel.layout import Layout
from lynx_parallel.plan import Item
from lynx_parallel.spec.load import load_campaign


def works(campaign: Path, shots: str) -> list[Work]:
    campaign.write_text(campaign.read_text() + f"shots:\n{shots}")
    identity = Identity.of({}, {})
    return [Work(Item(shot, identity, "render"), Layout(), "") for shot in load_campaign(campaign).shots]


def name(work: Work | None) -> str | None:
    return work.item.shot.name if work else None


def test_own_subject_then_one_that_no_other_gang_holds(campaign: Path) -> None:
    queue = works(campaign, '- {subject: "*", prompt: "*"}\n')
    assert name(next_work(queue, Slot(), set(), 0.0)) == "astronaut/pumpkin-t01"
    assert name(next_work(queue, Slot(), {"astronaut"}, 0.0)) == "drawn/pumpkin-t01"
    assert name(next_work(queue, Slot(subject="drawn"), {"astronaut"}, 0.0)) == "drawn/pumpkin-t01"
    assert name(next_work(queue, Slot(), {"astronaut", "drawn"}, 0.0)) == "astronaut/pumpkin-t01"


def test_priority_comes_before_all(campaign: Path) -> None:
    queue = works(campaign, '- {subject: astronaut, prompt: "*"}\n- {subject: drawn, prompt: beach, priority: 5}\n')
    assert name(next_work(queue, Slot(subject="astronaut"), {"drawn"}, 0.0)) == "drawn/beach-t01"


def test_retries_wait_for_their_time(campaign: Path) -> None:
    queue = works(campaign, "- {subject: astronaut, prompt: beach}\n")
    queue[0].not_before = 10.0
    assert next_work(queue, Slot(), set(), 9.9) is None
    assert next_work(queue, Slot(), set(), 10.0) is queue[0]
    assert next_work([], Slot(), set(), 10.0) is None
