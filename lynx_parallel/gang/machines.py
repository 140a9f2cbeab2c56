"""Which machines and GPUs a run uses, and which it has left out because they are at fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence, Set
from dataclasses import replace
from typing import Any

from lynx_parallel.gang.faults import Faults, Room, Verdict, machine_of, signature
from lynx_parallel.gang.messages import Hello
from lynx_parallel.gang.placement import Terms, UnfitRank, hold_gpu
from lynx_parallel.gang.remedies import remedy_for

UNFIT_AFTER = 2
"""Self-checks that a rank must fail before it is left out: another process may have used the GPU for a moment."""

HoldGpu = Callable[[str, str], Awaitable[Any | None]]


class Machines:
    """The machines of one run. A *place* is a GPU of a machine, or a machine of CPUs.

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
        self._held: dict[str, Any] = {}
        self._faults = Faults()
        self._unfit: Counter[str] = Counter()
        self._hosts = {machine.node: machine.address for machine in terms.machines}

    @property
    def ranks(self) -> int:
        """How many ranks the machines can hold that are not left out."""
        return sum(machine.ranks for machine in self.terms.usable) - len(self._held)

    @property
    def _room(self) -> Room:
        machines = frozenset(machine.node for machine in self.terms.usable)
        return Room(machines, self.ranks if self.terms.device == "cuda" else len(machines))

    def met(self, hellos: Sequence[Hello]) -> None:
        """Notes where the ranks of a new gang run."""
        self._hosts |= {hello.machine: hello.host for hello in hellos}
        self._faults.met([hello.place for hello in hellos])

    def succeeded(self, hellos: Sequence[Hello]) -> None:
        """Notes that these ranks made a shot."""
        self._faults.succeeded([hello.place for hello in hellos])

    def suspect(self, place: str, reason: str, shot: str, others: Set[str]) -> bool:
        """Returns whether a shot that failed there is worth a try elsewhere. Arguments as of ``failed``."""
        return self._faults.suspect(place, signature(reason, shot), others, self._room)

    def unconfirmed(self, place: str) -> bool:
        """Returns whether nothing has succeeded there: a failure may be one that every shot shares."""
        return self._faults.unconfirmed(place)

    async def failed(self, place: str, shot: str, reason: str, *, given_up: bool, others: Set[str]) -> Verdict | None:
        """Notes a failed attempt, and leaves the GPU or the machine out where that follows.

        Args:
            shot: its name.
            given_up: whether its retries are spent.
            others: places of the other gangs.

        Returns:
            As ``Faults.failed``.
        """
        verdict = self._faults.failed(
            place, shot, signature(reason, shot), given_up=given_up, others=others, room=self._room
        )
        if verdict is None or verdict == "end":
            return verdict
        bad = machine_of(place) if verdict == "exclude machine" else place
        line = f"{self._named(bad)}: shots fail there in the same way: {reason}"
        return verdict if await self._leave_out(bad, line) else None

    def explain(self, place: str, reason: str) -> str:
        """Returns the line for a failure that every shot shares: what, where, and what to do."""
        host = self._hosts.get(machine_of(place), place)
        return f"every shot fails in the same way, last on {host}: {reason}. {remedy_for(reason, host=host)}"

    async def unfit(self, error: UnfitRank) -> bool:
        """Notes a failed self-check. Returns whether the GPU or the machine was left out for it."""
        self._hosts[machine_of(error.place)] = error.host
        self._unfit[error.place] += 1
        return self._unfit[error.place] >= UNFIT_AFTER and await self._leave_out(error.place, str(error))

    async def _leave_out(self, place: str, line: str) -> bool:
        """Keeps a GPU or a machine from the gangs to come. Returns False where the GPU did not become free for that."""
        machine, _, gpu = place.partition("/")
        if place in self._held or machine in self.terms.excluded:
            return True
        self._faults.exclude(place)
        if not gpu:
            self.terms = replace(self.terms, excluded=self.terms.excluded | {machine})
        elif (holder := await self._hold(machine, gpu)) is not None:
            self._held[place] = holder
        else:
            return False
        self.left_out.append(line)
        return True

    def _named(self, place: str) -> str:
        """Returns a place in words."""
        machine, _, gpu = place.partition("/")
        host = self._hosts.get(machine, machine)
        return f"{host}, GPU {gpu}" if gpu else host
