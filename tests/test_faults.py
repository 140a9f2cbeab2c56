"""Which failures end the run, which exclude a machine, and which are a shot's own."""

from __future__ import annotations

from lynx_parallel.gang.faults import Faults, signature

R, OTHER = "RuntimeError: Found no NVIDIA driver", "ValueError: something else"


def test_two_shots_on_the_only_machine_end_the_run_after_their_retries() -> None:
    faults = Faults({"a"})
    assert faults.failed("a", "s1", R, given_up=False) is None
    assert faults.failed("a", "s1", R, given_up=True) is None
    assert faults.failed("a", "s2", R, given_up=False) is None
    assert faults.failed("a", "s2", R, given_up=True) == "end"


def test_different_failures_are_the_shots_own() -> None:
    faults = Faults({"a"})
    assert faults.failed("a", "s1", R, given_up=True) is None
    assert faults.failed("a", "s2", OTHER, given_up=True) is None


def test_a_machine_where_a_shot_succeeded_is_never_blamed() -> None:
    faults = Faults({"a", "b"})
    faults.succeeded("a")
    for shot in ("s1", "s2", "s3"):
        assert faults.failed("a", shot, R, given_up=True) is None
    assert not faults.suspect("a")


def test_one_bad_machine_is_excluded() -> None:
    faults = Faults({"a", "b"})
    assert faults.failed("a", "s1", R, given_up=False) is None
    assert faults.suspect("a")
    assert faults.failed("a", "s2", R, given_up=False) == "exclude"
    faults.exclude("a")
    faults.succeeded("b")
    assert faults.failed("b", "s1", R, given_up=True) is None


def test_the_same_failure_on_two_machines_ends_the_run() -> None:
    faults = Faults({"a", "b"})
    assert faults.failed("a", "s1", R, given_up=False) is None
    assert faults.failed("b", "s2", R, given_up=False) is None
    assert faults.failed("b", "s1", R, given_up=True) == "end"


def test_one_shot_that_fails_everywhere_is_its_own_fault() -> None:
    faults = Faults({"a", "b"})
    assert faults.failed("a", "s1", R, given_up=False) is None
    assert faults.failed("b", "s1", R, given_up=True) is None


def test_a_success_elsewhere_does_not_clear_a_bad_machine() -> None:
    faults = Faults({"a", "b", "c"})
    faults.succeeded("b")
    assert faults.failed("a", "s1", R, given_up=True) is None
    assert faults.failed("a", "s2", R, given_up=False) == "exclude"


def test_names_and_numbers_do_not_tell_failures_apart() -> None:
    one = signature("RenderError: /out/ada/walk-t01.mp4.1.part: Permission denied", "ada/walk-t01")
    two = signature("RenderError: /out/bob/run-t02.mp4.2.part: Permission denied", "bob/run-t02")
    assert one == two
    assert signature("a rank died: actor 5f8d3c0a9b7e6d1c2b3a is gone", "s") == signature(
        "a rank died: actor 0123456789abcdef0123 is gone", "s"
    )
    assert signature(R, "s") != signature(OTHER, "s")
