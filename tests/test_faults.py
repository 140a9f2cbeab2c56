"""Which failures end the run, which exclude a GPU or a machine, and which are a shot's own."""

from __future__ import annotations

from typing import Any

from lynx_parallel.gang.faults import Faults, Room, machine_of, signature

R, OTHER = "RuntimeError: Found no NVIDIA driver", "ValueError: something else"


def failed(faults: Faults, place: str, shot: str, *others: str, failure: str = R, spent: bool = False) -> Any:
    """A failure where the places are those of the gangs at work, and no more."""
    places = {place, *others}
    faults.met(places)
    return faults.failed(place, shot, failure, given_up=spent, others=set(others), room=room(*places))


def room(*places: str, more: int = 0) -> Room:
    return Room(frozenset(map(machine_of, places)), len(places) + more)


def test_two_shots_at_the_only_place_end_the_run_after_their_retries() -> None:
    faults = Faults()
    assert failed(faults, "a", "s1") is None
    assert failed(faults, "a", "s1", spent=True) is None
    assert failed(faults, "a", "s2") is None
    assert failed(faults, "a", "s2", spent=True) == "end"


def test_different_failures_are_the_shots_own() -> None:
    faults = Faults()
    assert failed(faults, "a", "s1", spent=True) is None
    assert failed(faults, "a", "s2", failure=OTHER, spent=True) is None


def test_a_place_where_a_shot_succeeded_is_never_blamed() -> None:
    faults = Faults()
    faults.succeeded(["a"])
    for shot in ("s1", "s2", "s3"):
        assert failed(faults, "a", shot, "b", spent=True) is None
    assert not faults.suspect("a", R, {"b"}, room("a", "b"))


def test_one_bad_gpu_is_excluded_while_the_others_are_still_at_their_first_shot() -> None:
    faults = Faults()
    others = [f"a/{n}" for n in range(1, 8)]
    assert failed(faults, "a/0", "s1", *others) is None
    assert faults.suspect("a/0", R, set(others), room("a/0", *others))
    assert failed(faults, "a/0", "s2", *others) == "exclude place"
    faults.exclude("a/0")
    assert failed(faults, "a/0", "s3", *others) == "exclude place"


def test_one_bad_machine_is_excluded_once_two_of_its_gpus_fail_alike() -> None:
    faults = Faults()
    good = ["b/0", "b/1"]
    assert failed(faults, "a/0", "s1", "a/1", *good) is None
    assert failed(faults, "a/1", "s2", "a/0", *good) is None
    assert failed(faults, "a/0", "s3", "a/1", *good) == "exclude machine"
    faults.exclude("a")
    assert failed(faults, "a/1", "s4", *good) == "exclude place"


def test_gpus_of_a_machine_where_others_work_are_excluded_one_by_one() -> None:
    faults = Faults()
    faults.succeeded(["a/2"])
    for place, shots in (("a/0", ("s1", "s2")), ("a/1", ("s3", "s4"))):
        assert failed(faults, place, shots[0], "a/2") is None
        assert failed(faults, place, shots[1], "a/2") == "exclude place"


def test_the_same_failure_at_all_places_ends_the_run() -> None:
    faults = Faults()
    assert failed(faults, "a", "s1", "b") is None
    assert failed(faults, "b", "s2", "a") is None
    assert failed(faults, "b", "s1", "a", spent=True) == "end"


def test_a_gang_of_many_gpus_is_one_witness() -> None:
    """Its ranks fail together, and any of them may be the first to say so."""
    faults = Faults()
    gpus = [f"a/{n}" for n in range(8)]
    faults.met(gpus)

    def one(place: str, shot: str, spent: bool) -> Any:
        return faults.failed(place, shot, R, given_up=spent, others=set(), room=room(*gpus))

    assert one("a/3", "s1", False) is None
    assert one("a/5", "s1", True) is None
    assert one("a/3", "s2", False) == "end"


def test_room_that_was_never_tried_counts_as_another_place() -> None:
    faults = Faults()
    faults.met(["a"])
    both = room("a", "b")
    assert faults.failed("a", "s1", R, given_up=True, others=set(), room=both) is None
    assert faults.failed("a", "s2", R, given_up=False, others=set(), room=both) == "exclude place"
    faults.exclude("a")
    faults.met(["b"])
    assert faults.failed("b", "s1", R, given_up=True, others=set(), room=room("b")) == "end"


def test_a_gpu_that_was_never_tried_counts_too_until_a_second_one_fails_alike() -> None:
    faults = Faults()
    faults.met(["a/0"])
    assert faults.failed("a/0", "s1", R, given_up=True, others=set(), room=room("a/0", more=7)) is None
    assert faults.failed("a/0", "s2", R, given_up=False, others=set(), room=room("a/0", more=7)) == "exclude place"
    faults.exclude("a/0")
    faults.met(["a/1"])
    assert faults.failed("a/1", "s1", R, given_up=True, others=set(), room=room("a/1", more=6)) == "end"


def test_a_machine_that_was_never_tried_keeps_the_run_alive() -> None:
    faults = Faults()
    faults.met(["a/0", "a/1"])
    rest = Room(frozenset({"a", "b"}), 4)
    assert faults.failed("a/0", "s1", R, given_up=False, others={"a/1"}, room=rest) is None
    assert faults.failed("a/1", "s2", R, given_up=False, others={"a/0"}, room=rest) is None
    assert faults.failed("a/0", "s3", R, given_up=False, others={"a/1"}, room=rest) == "exclude machine"


def test_one_shot_that_fails_everywhere_is_its_own_fault() -> None:
    faults = Faults()
    assert failed(faults, "a", "s1", "b") is None
    assert failed(faults, "b", "s1", "a", spent=True) is None


def test_names_and_numbers_do_not_tell_failures_apart() -> None:
    one = signature("RenderError: /out/ada/walk-t01.mp4.1.part: Permission denied", "ada/walk-t01")
    two = signature("RenderError: /out/bob/run-t02.mp4.2.part: Permission denied", "bob/run-t02")
    assert one == two
    assert signature("a rank died: actor 5f8d3c0a9b7e6d1c2b3a is gone", "s") == signature(
        "a rank died: actor 0123456789abcdef0123 is gone", "s"
    )
    assert signature(R, "s") != signature(OTHER, "s")
    assert (machine_of("a/3"), machine_of("a")) == ("a", "a")
