"""Decides whether a shot, a GPU, a machine, or something that all shots share caused a failure.

A *place* is where a rank runs: one GPU, or a whole machine for ranks on the CPU. The driver is one too (``DRIVER``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

from lynx_parallel.inputs.manifest import Shot

CONFIRMED_BY = 2
"""Different sources whose shots must fail in the same way before the cause is sought outside them."""
DRIVER = ""

Verdict = Literal["exclude place", "exclude machine", "end"]


class Faults:
    """Counts equal failures at places where no shot has succeeded yet.

    - A place is excluded once two shots failed there in the same way, if work elsewhere does not show this failure. If
      two places of a machine failed in that way and no shot succeeded on the machine, the machine is excluded.
    - Otherwise the run ends once two shots failed in the same way. At one place, both shots must have spent their
      retries. At several places, one of them must have.

    The two shots must have different sources, see ``source_of``: a bad subject makes all of its own shots fail.
    """

    def __init__(self) -> None:
        self._proven: set[str] = set()
        self._excluded: set[str] = set()
        self._failed: dict[str, dict[str, set[str]]] = {}  # failure → place → sources since its last success
        self._given_up: dict[str, set[str]] = {}
        self._outdone: set[str] = set()  # places that failed since another one succeeded

    def succeeded(self, places: Iterable[str]) -> None:
        """Records that a shot succeeded at these places. Later failures there count as the shots' own."""
        places = {DRIVER, *places}
        self._proven |= places
        for by_place in self._failed.values():
            for place in places:
                by_place.pop(place, None)
        self._outdone |= {place for by_place in self._failed.values() for place in by_place}
        self._outdone -= places

    def exclude(self, place: str) -> None:
        """Records that no rank runs at this place, or on this machine, any more."""
        self._excluded.add(place)

    def proven(self, place: str) -> bool:
        """Returns whether a shot has succeeded at this place, or on this machine."""
        return any(place in (one, machine_of(one)) for one in self._proven)

    def failed(self, place: str, source: str, failure: str, *, given_up: bool, elsewhere: bool) -> Verdict | None:
        """Records a failed attempt. Returns what to exclude, ``end`` to end the run, or None.

        Args:
            source: from ``source_of``.
            failure: from ``Failure.signature``.
            given_up: whether the shot's retries are spent.
            elsewhere: whether another gang works or starts without this failure, or other room was never tried.
        """
        if place in self._excluded or machine_of(place) in self._excluded:
            return "exclude place"  # the gang was still running when the place was excluded
        by_place = self._failed.setdefault(failure, {})
        by_place.setdefault(place, set()).add(source)
        given = self._given_up.setdefault(failure, set())
        if given_up:
            given.add(source)
        if place in self._proven:
            if place not in self._outdone or len(by_place[place]) < CONFIRMED_BY:
                return None
            self._proven.discard(place)  # shots succeeded here once; now they succeed only elsewhere
        if elsewhere and place != DRIVER:
            if len(by_place[place]) < CONFIRMED_BY:
                return None
            return "exclude machine" if self._whole_machine(place, failure) else "exclude place"
        equal = {p: sources for p, sources in by_place.items() if p not in self._proven}
        if not given or elsewhere or len(set().union(*equal.values())) < CONFIRMED_BY:
            return None
        return "end" if len(equal) > 1 or len(given) >= CONFIRMED_BY else None

    def _whole_machine(self, place: str, failure: str) -> bool:
        machine = machine_of(place)
        here = [p for p in self._failed[failure] if machine_of(p) == machine and p not in self._proven]
        return len(here) >= CONFIRMED_BY and not self.proven(machine)


def source_of(shots: Iterable[Shot]) -> Callable[[Shot], str]:
    """Returns a function from a shot to its source: its subject; its prompt if there is one subject; else its name."""
    shots = list(shots)
    if len({shot.subject.id for shot in shots}) > 1:
        return lambda shot: shot.subject.id
    if len({shot.prompt.id for shot in shots}) > 1:
        return lambda shot: shot.prompt.id
    return lambda shot: shot.name


def machine_of(place: str) -> str:
    """Returns the machine of a place."""
    return place.partition("/")[0]
