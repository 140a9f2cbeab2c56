"""Failures that are not a shot's own, but a GPU's, a machine's, or everyone's. Pure; imports neither torch nor Ray.

A *place* is where a rank runs: a GPU of a machine, or a machine of CPUs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Set
from typing import Literal, NamedTuple

from lynx_parallel.gang.policy import Kind

SHARED_KINDS: tuple[Kind, ...] = ("raised", "died")
"""Kinds that a place can cause. A subject, a full disk or a lack of memory has a rule of its own."""
CONFIRMED_BY = 2
"""Shots that must fail in the same way."""

Verdict = Literal["exclude place", "exclude machine", "end"]


class Room(NamedTuple):
    """What a run may use: ids of machines, and how many places they have together."""

    machines: frozenset[str]
    places: int


class Faults:
    """Counts equal failures at places where no shot has succeeded yet.

    A place where two shots failed in the same way is excluded while another gang works without that failure, or while
    there is room that was never tried. Two such places of a machine on which nothing works exclude the machine. Without
    such gangs or room, the run ends once two shots failed in the same way: at two places, one of the shots after its
    retries, or at one place, both after their retries.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._proven: set[str] = set()
        self._excluded: set[str] = set()
        self._failed: dict[str, dict[str, set[str]]] = {}  # failure → place → shots
        self._given_up: dict[str, set[str]] = {}  # failure → shots

    def met(self, places: Collection[str]) -> None:
        """Notes that ranks run at these places."""
        self._known.update(places)

    def succeeded(self, places: Collection[str]) -> None:
        """Notes that a shot was made at these places: failures there are the shots' own from now on."""
        self._proven.update(places)

    def exclude(self, place: str) -> None:
        """Notes that no rank runs at this place, or on this machine, any more."""
        self._excluded.add(place)

    def suspect(self, place: str, failure: str, others: Set[str], room: Room) -> bool:
        """Returns whether a shot that failed may succeed elsewhere: the place itself may be at fault.

        Args:
            others: places of the other gangs.
            room: that may be used.
        """
        alike = self._alike(failure)
        known = {p for p in self._known if not self._is_excluded(p)}
        untried = bool(room.machines - {machine_of(p) for p in known}) or (
            room.places > len(known) and alike <= {place}
        )
        return place not in self._proven and (bool(others - alike) or untried)

    def unconfirmed(self, place: str) -> bool:
        """Returns whether nothing has succeeded at this place."""
        return place not in self._proven

    def failed(
        self, place: str, shot: str, failure: str, *, given_up: bool, others: Set[str], room: Room
    ) -> Verdict | None:
        """Notes a failed attempt and returns what follows for the place, its machine, or the run.

        Args:
            failure: of ``signature``.
            given_up: whether the shot's retries are spent.
            others, room: as in ``suspect``.
        """
        if place in self._proven:
            return None
        if self._is_excluded(place):
            return "exclude place"  # of a gang that was at work there meanwhile
        by_place = self._failed.setdefault(failure, {})
        by_place.setdefault(place, set()).add(shot)
        given = self._given_up.setdefault(failure, set())
        if given_up:
            given.add(shot)
        if self.suspect(place, failure, others, room):
            if len(by_place[place]) < CONFIRMED_BY:
                return None
            return "exclude machine" if self._whole_machine(place, failure, others) else "exclude place"
        alike = self._alike(failure)
        shots = set().union(*(by_place[p] for p in alike))
        confirmed = len(shots) >= CONFIRMED_BY and given and (len(alike) > 1 or len(given) >= CONFIRMED_BY)
        return "end" if confirmed else None

    def _alike(self, failure: str) -> set[str]:
        """Returns the places that failed in this way and where nothing has succeeded."""
        return set(self._failed.get(failure, {})) - self._proven

    def _whole_machine(self, place: str, failure: str, others: Set[str]) -> bool:
        machine, alike = machine_of(place), self._alike(failure)
        here = {p for p in alike if machine_of(p) == machine}
        sound = {p for p in self._proven | set(others) - alike if machine_of(p) == machine}
        return len(here) >= CONFIRMED_BY and not sound

    def _is_excluded(self, place: str) -> bool:
        return place in self._excluded or machine_of(place) in self._excluded


def machine_of(place: str) -> str:
    """Returns the machine of a place."""
    return place.partition("/")[0]


def signature(reason: str, shot: str) -> str:
    """Returns what equal failures of different shots have in common: type and first line, without names and numbers.

    Args:
        reason: type and first line of an error.
        shot: name of the shot, which paths in the reason may contain.
    """
    return re.sub(r"[0-9a-f]{16,}|\d+", "#", reason.replace(shot, "<shot>"))
