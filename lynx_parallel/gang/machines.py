"""Which machines and GPUs a run uses, and which it has left out because they are at fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from lynx_parallel.gang.faults import Faults, Verdict, signature
from lynx_parallel.gang.placement import Terms, UnfitRank, hold_gpu
from lynx_parallel.gang.remedies import remedy_for

UNFIT_AFTER = 2
"""Self-checks that a rank must fail before it is left out: another process may have used the GPU for a moment."""

HoldGpu = Callable[[str, str], Awaitable[Any | None]]


class Machines:
    """The machines of one run.

    Attributes:
        terms: on which gangs are started; ``terms.excluded`` grows.
        left_out: a line for each machine or GPU that was left out.

    Args:
        hold: as ``placement.hold_gpu``.
    """

    def __init__(self, terms: Terms, hold: HoldGpu = hold_gpu):
        self.terms = terms
        self.left_out: list[str] = []
        self._hold = hold
        self._held: list[Any] = []
        self._faults = Faults({machine.node for machine in terms.machines})
        self._unfit: Counter[tuple[str, str]] = Counter()
        self._hosts = {machine.node: machine.address for machine in terms.machines}

    @property
    def ranks(self) -> int:
        """How many ranks the machines can hold that are not left out."""
        return sum(machine.ranks for machine in self.terms.usable) - len(self._held)

    def met(self, machine: str, host: str) -> None:
        """Notes the name of a machine."""
        self._hosts[machine] = host

    def succeeded(self, machine: str) -> None:
        """Notes that a shot was made there."""
        self._faults.succeeded(machine)

    def suspect(self, machine: str) -> bool:
        """Returns whether a shot that failed there is worth a try on another machine."""
        return self._faults.suspect(machine)

    def unconfirmed(self, machine: str) -> bool:
        """Returns whether a failure there may be one that every shot shares."""
        return self._faults.unconfirmed(machine)

    def failed(self, machine: str, shot: str, reason: str, *, given_up: bool) -> Verdict | None:
        """Notes a failed attempt, and leaves the machine out where that follows. Returns as ``Faults.failed``."""
        verdict = self._faults.failed(machine, shot, signature(reason, shot), given_up=given_up)
        if verdict == "exclude" and machine not in self.terms.excluded:
            self._exclude(machine, f"{self._host(machine)}: shots fail there in the same way: {reason}")
        return verdict

    def explain(self, machine: str, reason: str) -> str:
        """Returns the line for a failure that every shot shares: what, where, and what to do."""
        host = self._host(machine)
        return f"every shot fails in the same way, last on {host}: {reason}. {remedy_for(reason, host=host)}"

    async def unfit(self, error: UnfitRank) -> bool:
        """Notes a failed self-check. Returns whether the GPU or the machine was left out for it."""
        self._hosts[error.machine] = error.host
        self._unfit[error.machine, error.gpu] += 1
        if self._unfit[error.machine, error.gpu] < UNFIT_AFTER:
            return False
        if not error.gpu:
            self._exclude(error.machine, str(error))
            return True
        holder = await self._hold(error.machine, error.gpu)
        if holder is None:
            return False
        self._held.append(holder)
        self.left_out.append(str(error))
        return True

    def _exclude(self, machine: str, line: str) -> None:
        self.terms = replace(self.terms, excluded=self.terms.excluded | {machine})
        self._faults.exclude(machine)
        self.left_out.append(line)

    def _host(self, machine: str) -> str:
        return self._hosts.get(machine, machine)
