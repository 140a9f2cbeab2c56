"""The file of takes: what is written is read, and nothing is lost."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from lynx_parallel.errors import InputErrors
from lynx_parallel.output.takes import Past, Take, Takes, as_text, changing, derived_seed, read_takes, rerolled

ADA = Take("ada", "beach", 2, 99, "fast", "accepted", "2026-11-27T06:00:00+00:00", 7, (Past(7, "rejected", "x"),))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "takes.json"
    path.write_text(as_text([ADA, Take("bob", "beach", 1, 2**63 - 1)]))
    assert list(read_takes(path).values()) == [ADA, Take("bob", "beach", 1, 2**63 - 1)]
    assert read_takes(tmp_path / "none.json") == {}


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", '{"version": 1}', '{"version": 1, "takes": [{"subject": "a", "prompt": "b", "take": 1}]}',
        '{"version": 1, "takes": [{"subject": "a", "prompt": "b", "take": 0, "seed": 1}]}',
        '{"version": 1, "takes": [{"subject": "a", "prompt": "b", "take": 1, "seed": -1}]}',
        '{"version": 1, "takes": [{"subject": "a", "prompt": "b", "take": 1, "seed": 1, "state": "good"}]}',
        '{"version": 2, "takes": []}',
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    """Its seeds would be lost otherwise, and their shots made again."""
    path = tmp_path / "takes.json"
    path.write_text(text)
    with pytest.raises(InputErrors, match=r"takes\.json"):
        read_takes(path)
    assert path.read_text() == text


def test_a_reroll_keeps_the_history_and_repeats_no_seed() -> None:
    take, seen = Take("ada", "beach", 2, 42), {42, 43}
    for _ in range(50):
        before = take
        take = rerolled(replace(take, state="accepted"), {43})
        assert take.seed not in seen
        assert (take.state, take.history[-1].seed, take.history[-1].state) == ("", before.seed, "rejected")
        seen.add(take.seed)
    assert take.history[0].seed == 42
    assert take.key == ("ada", "beach", "", 2)


def test_a_derived_seed_depends_on_the_take_and_avoids_what_is_taken() -> None:
    key = ("ada", "beach", "", 2)
    first = derived_seed(key, 1, ())
    assert first == derived_seed(key, 1, {first + 1})
    assert first != derived_seed(("ada", "beach", "", 3), 1, ())
    assert first != derived_seed(key, 2, ())
    assert derived_seed(key, 1, {first}) not in {first, derived_seed(key, 2, ())}
    assert 0 <= first < 2**32


def test_the_later_of_two_files_wins() -> None:
    old, new = replace(ADA, seed=1, time="2026-01-01"), replace(ADA, seed=2, time="2026-02-01")
    other = Take("bob", "beach", 1, 5)
    assert Takes([old]).later_of(Takes([new, other])) == Takes([new, other])
    assert Takes([new]).later_of(Takes([old])) == Takes([new])
    by_hand = replace(ADA, seed=3, time="")
    assert Takes([old]).later_of(Takes([by_hand])) == Takes([old])


def test_changes_of_several_processes_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / ".lynx" / "takes.json"

    def add(number: int) -> None:
        with changing(path) as takes:
            take = Take("ada", "beach", number, number)
            takes[take.key] = take

    threads = [threading.Thread(target=add, args=(number,)) for number in range(1, 21)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(take.take for take in read_takes(path).values()) == list(range(1, 21))


def test_an_error_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "takes.json"
    path.write_text(as_text([ADA]))
    before = path.read_text()
    with pytest.raises(ZeroDivisionError), changing(path) as takes:
        takes.popitem()[1].take / 0
    assert path.read_text() == before
    assert json.loads(before)["takes"][0]["instead_of"] == 7
