"""Which failures end the run, which exclude a GPU or a machine, and which are a shot's own."""

from __future__ import annotations

from pathlib import Path

from lynx_parallel.engine.faults import DRIVER, Faults, Verdict, machine_of, source_of
from lynx_parallel.failures import Failure
from tests.helpers.campaigns import load, write

R, OTHER = "RuntimeError: Found no NVIDIA driver", "ValueError: something else"
ONE, TWO, THREE, FOUR = "abcd"


def failed(
    faults: Faults, place: str, shot: str, *, failure: str = R, spent: bool = False, elsewhere: bool = False
) -> Verdict | None:
    return faults.failed(place, shot, failure, given_up=spent, elsewhere=elsewhere)


def signature(reason: str, shot: str) -> str:
    return Failure("raised", reason).signature(shot)


def test_two_shots_at_the_only_place_end_the_run_after_their_retries() -> None:
    faults = Faults()
    assert failed(faults, "m", ONE) is None
    assert failed(faults, "m", ONE, spent=True) is None
    assert failed(faults, "m", TWO) is None
    assert failed(faults, "m", TWO, spent=True) == "end"


def test_different_failures_are_the_shots_own() -> None:
    faults = Faults()
    assert failed(faults, "m", ONE, spent=True) is None
    assert failed(faults, "m", TWO, failure=OTHER, spent=True) is None


def test_shots_of_one_source_are_one_witness() -> None:
    faults = Faults()
    for _ in range(5):
        assert failed(faults, "m", ONE, spent=True) is None


def test_what_tells_shots_apart(tmp_path: Path) -> None:
    shots = load(write(tmp_path).parent).shots
    assert {source_of(shots)(shot) for shot in shots} == {"ada", "bob"}
    ada = [shot for shot in shots if shot.subject.id == "ada"]
    assert {source_of(ada)(shot) for shot in ada} == {"walk", "run"}
    assert {source_of(ada[:1])(shot) for shot in ada[:1]} == {"ada/walk-t01"}


def test_a_place_where_a_shot_succeeded_is_not_blamed() -> None:
    faults = Faults()
    faults.succeeded(["m"])
    for shot in (ONE, TWO, THREE):
        assert failed(faults, "m", shot, spent=True) is None
    assert faults.proven("m")


def test_a_gpu_that_worked_once_is_blamed_when_others_work_and_it_does_not() -> None:
    faults = Faults()
    faults.succeeded(["m/0", "m/1"])
    assert failed(faults, "m/1", ONE, elsewhere=True) is None
    assert failed(faults, "m/1", TWO, elsewhere=True) is None
    faults.succeeded(["m/0"])
    assert failed(faults, "m/1", THREE, elsewhere=True) == "exclude place"


def test_a_success_clears_the_failures_before_it() -> None:
    faults = Faults()
    faults.succeeded(["m/1"])
    assert failed(faults, "m/1", ONE, elsewhere=True) is None
    faults.succeeded(["m/0"])
    faults.succeeded(["m/1"])
    assert failed(faults, "m/1", TWO, elsewhere=True) is None


def test_one_bad_gpu_is_excluded_while_the_others_are_still_at_their_first_shot() -> None:
    faults = Faults()
    assert failed(faults, "m/0", ONE, elsewhere=True) is None
    assert failed(faults, "m/0", TWO, elsewhere=True) == "exclude place"
    faults.exclude("m/0")
    assert failed(faults, "m/0", THREE, elsewhere=True) == "exclude place"


def test_one_bad_machine_is_excluded_once_two_of_its_gpus_fail_alike() -> None:
    faults = Faults()
    assert failed(faults, "bad/0", ONE, elsewhere=True) is None
    assert failed(faults, "bad/1", TWO, elsewhere=True) is None
    assert failed(faults, "bad/0", THREE, elsewhere=True) == "exclude machine"
    faults.exclude("bad")
    assert failed(faults, "bad/1", FOUR, elsewhere=True) == "exclude place"


def test_gpus_of_a_machine_where_others_work_are_excluded_one_by_one() -> None:
    faults = Faults()
    faults.succeeded(["m/2"])
    for place in ("m/0", "m/1"):
        assert failed(faults, place, ONE, elsewhere=True) is None
        assert failed(faults, place, TWO, elsewhere=True) == "exclude place"


def test_the_same_failure_everywhere_ends_the_run_after_one_shot_s_retries() -> None:
    faults = Faults()
    assert failed(faults, "a", ONE, elsewhere=True) is None
    assert failed(faults, "b", TWO) is None
    assert failed(faults, "b", ONE, spent=True) == "end"


def test_one_shot_that_fails_everywhere_is_its_own_fault() -> None:
    faults = Faults()
    assert failed(faults, "a", ONE) is None
    assert failed(faults, "b", ONE, spent=True) is None


def test_the_driver_is_never_excluded_but_what_it_cannot_do_ends_the_run() -> None:
    faults = Faults()
    assert failed(faults, DRIVER, ONE, spent=True, elsewhere=True) is None
    assert failed(faults, DRIVER, TWO, spent=True, elsewhere=True) is None
    assert failed(faults, DRIVER, THREE, spent=True) == "end"
    faults = Faults()
    faults.succeeded(["m"])
    assert failed(faults, DRIVER, ONE, spent=True) is None
    assert failed(faults, DRIVER, TWO, spent=True) is None


def test_names_and_numbers_do_not_tell_failures_apart() -> None:
    one = signature("RenderError: /out/ada/walk-t01.mp4.1.part: Permission denied", "ada/walk-t01")
    two = signature("RenderError: /out/bob/run-t02.mp4.2.part: Permission denied", "bob/run-t02")
    assert one == two
    assert signature("a rank died: actor 5f8d3c0a9b7e6d1c2b3a is gone", "s") == signature(
        "a rank died: actor 0123456789abcdef0123 is gone", "s"
    )
    assert signature("fault at 0x7f3a5bc01d90", "s") == signature("fault at 0x55aa01", "s")
    assert signature(R, "s") != signature(OTHER, "s")
    assert (machine_of("a/3"), machine_of("a")) == ("a", "a")
