"""Failures that are not a shot's own, but a GPU's, a machine's, or everyone's. Pure; imports neither torch nor Ray.

A *place* is where a rank runs: a GPU of a machine, or a machine of CPUs. The driver is a place without a name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Literal

from lynx_parallel.gang.policy import Kind
from lynx_parallel.spec.manifest import Shot

SHARED_KINDS: tuple[Kind, ...] = ("raised", "died")
"""Kinds that a place can cause. A subject, a full disk or a lack of memory has a rule of its own."""
CONFIRMED_BY = 2
"""Shots that must fail in the same way."""
DRIVER = ""

Verdict = Literal["exclude place", "exclude machine", "end"]


class Faults:
    """Counts equal failures at places where no shot has succeeded yet.

    A place where two shots failed in the same way is excluded while the failure is not seen elsewhere. Two such places
    of a machine on which nothing works exclude the machine. Where the failure is seen everywhere, the run ends once two
    shots failed in the same way, one of them after its retries; at a single place, both after their retries.

    Shots are told apart by their source, see ``source_of``: a bad subject fails all of its own shots in the same way.
    """

    def __init__(self) -> None:
        self._proven: set[str] = set()
        self._excluded: set[str] = set()
        self._failed: dict[str, dict[str, set[str]]] = {}  # failure → place → sources since its last success
        self._given_up: dict[str, set[str]] = {}
        self._outdone: set[str] = set()  # places that failed since another one succeeded

    def succeeded(self, places: Iterable[str]) -> None:
        """Notes that a shot was made at these places: a failure there is the shot's own from now on."""
        places = {DRIVER, *places}
        self._proven |= places
        for by_place in self._failed.values():
            for place in places:
                by_place.pop(place, None)
        self._outdone |= {place for by_place in self._failed.values() for place in by_place}
        self._outdone -= places

    def exclude(self, place: str) -> None:
        """Notes that no rank runs at this place, or on this machine, any more."""
        self._excluded.add(place)

    def proven(self, place: str) -> bool:
        """Returns whether a shot has succeeded at this place, or on this machine."""
        return any(place in (one, machine_of(one)) for one in self._proven)

    def failed(self, place: str, source: str, failure: str, *, given_up: bool, elsewhere: bool) -> Verdict | None:
        """Notes a failed attempt and returns what follows for the place, its machine, or the run.

        Args:
            source: of ``source_of``.
            failure: of ``signature``.
            given_up: whether the shot's retries are spent.
            elsewhere: whether another gang works or starts without this failure, or other room was never tried.
        """
        if place in self._excluded or machine_of(place) in self._excluded:
            return "exclude place"  # of a gang that was at work there meanwhile
        by_place = self._failed.setdefault(failure, {})
        by_place.setdefault(place, set()).add(source)
        given = self._given_up.setdefault(failure, set())
        if given_up:
            given.add(source)
        if place in self._proven:
            if place not in self._outdone or len(by_place[place]) < CONFIRMED_BY:
                return None
            self._proven.discard(place)  # it worked once, and now others do and it does not
        if elsewhere and place != DRIVER:
            if len(by_place[place]) < CONFIRMED_BY:
                return None
            return "exclude machine" if self._whole_machine(place, failure) else "exclude place"
        alike = {p: sources for p, sources in by_place.items() if p not in self._proven}
        if not given or elsewhere or len(set().union(*alike.values())) < CONFIRMED_BY:
            return None
        return "end" if len(alike) > 1 or len(given) >= CONFIRMED_BY else None

    def _whole_machine(self, place: str, failure: str) -> bool:
        machine = machine_of(place)
        here = [p for p in self._failed[failure] if machine_of(p) == machine and p not in self._proven]
        return len(here) >= CONFIRMED_BY and not self.proven(machine)


def source_of(shots: Iterable[Shot]) -> Callable[[Shot], str]:
    """Returns what tells the shots of a run apart: their subjects, or prompts where there is one subject, or names."""
    shots = list(shots)
    if len({shot.subject.id for shot in shots}) > 1:
        return lambda shot: shot.subject.id
    if len({shot.prompt.id for shot in shots}) > 1:
        return lambda shot: shot.prompt.id
    return lambda shot: shot.name


def machine_of(place: str) -> str:
    """Returns the machine of a place."""
    return place.partition("/")[0]


def signature(reason: str, shot: str) -> str:
    """Returns what equal failures of different shots have in common: type and first line, without names and numbers.

    Args:
        reason: type and first line of an error.
        shot: name of the shot, which paths in the reason may contain.
    """
    return re.sub(r"0x[0-9a-f]+|[0-9a-f]{8,}|\d+", "#", reason.replace(shot, "<shot>"))
