"""Failures that are not a shot's own, but a machine's or every machine's. Pure; imports neither torch nor Ray."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal

from lynx_parallel.gang.policy import Kind

SHARED_KINDS: tuple[Kind, ...] = ("raised", "died")
"""Kinds that a machine can cause. A subject, a full disk or a lack of memory has a rule of its own."""
CONFIRMED_BY = 2
"""Shots that must fail in the same way."""

Verdict = Literal["exclude", "end"]


class Faults:
    """Counts equal failures on machines where no shot has succeeded yet.

    A machine where two shots failed in the same way is excluded while there is another one. The run ends where two
    shots failed in the same way, after their retries, on the only machine; or on two machines, one of the shots after
    its retries.

    Args:
        machines: that can hold ranks.
    """

    def __init__(self, machines: Collection[str]):
        self._usable = set(machines)
        self._proven: set[str] = set()
        self._failed: dict[str, dict[str, set[str]]] = {}  # failure → machine → shots
        self._given_up: dict[str, set[str]] = {}  # failure → shots

    def succeeded(self, machine: str) -> None:
        """Notes that a shot was made on this machine: failures there are the shots' own from now on."""
        self._proven.add(machine)

    def exclude(self, machine: str) -> None:
        """Notes that no rank runs on this machine any more."""
        self._usable.discard(machine)

    def suspect(self, machine: str) -> bool:
        """Returns whether a failure may be this machine's own: none has succeeded there, and there is another one."""
        return machine not in self._proven and bool(self._usable - {machine})

    def unconfirmed(self, machine: str) -> bool:
        """Returns whether a failure may be one that every shot shares, on the only machine: none has succeeded."""
        return machine not in self._proven and not self.suspect(machine)

    def failed(self, machine: str, shot: str, failure: str, *, given_up: bool) -> Verdict | None:
        """Notes a failed attempt and returns what follows for the machine, or for the run.

        Args:
            failure: of ``signature``.
            given_up: whether the shot's retries are spent.
        """
        if machine in self._proven:
            return None
        if machine not in self._usable:
            return "exclude"  # of a gang that was at work there meanwhile
        by_machine = self._failed.setdefault(failure, {})
        by_machine.setdefault(machine, set()).add(shot)
        given = self._given_up.setdefault(failure, set())
        if given_up:
            given.add(shot)
        unproven = {name: shots for name, shots in by_machine.items() if name not in self._proven}
        if given and len(unproven) > 1 and len(set().union(*unproven.values())) >= CONFIRMED_BY:
            return "end"
        if len(by_machine[machine]) < CONFIRMED_BY:
            return None
        if self.suspect(machine):
            return "exclude"
        return "end" if len(given) >= CONFIRMED_BY else None


def signature(reason: str, shot: str) -> str:
    """Returns what equal failures of different shots have in common: type and first line, without names and numbers.

    Args:
        reason: type and first line of an error.
        shot: name of the shot, which paths in the reason may contain.
    """
    return re.sub(r"[0-9a-f]{16,}|\d+", "#", reason.replace(shot, "<shot>"))
