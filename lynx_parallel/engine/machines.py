"""The machines and GPUs that a run uses, and those that it has left out because they are at fault."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from lynx_parallel.engine.faults import Faults, Verdict, machine_of
from lynx_parallel.engine.placement import StartOptions, hold_gpu
from lynx_parallel.failures import Failure
from lynx_parallel.rank.messages import Hello

UNFIT_AFTER = 2
"""Failed starts after which a place is left out. One may fail because another process briefly uses the GPU."""
APART_S = 10.0
"""Failed starts of several gangs count as one within this time: they share the cause."""

HoldGpu = Callable[[str, str], Awaitable[Any | None]]


class Machines:
    """The machines of one run. For *place*, see ``engine.faults``.

    Attributes:
        options: for starting gangs; ``options.excluded`` grows.
        left_out: a line for each machine or GPU that was left out.
        full: whether a gang found no room although places were left out.

    Args:
        hold: as ``placement.hold_gpu``.
    """

    def __init__(self, options: StartOptions, hold: HoldGpu = hold_gpu):
        self.options = options
        self.left_out: list[str] = []
        self.full = False
        self._hold = hold
        self._held: dict[str, Any] = {}
        self._holding: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._faults = Faults()
        self._known: set[str] = set()
        self._unfit: dict[str, tuple[int, float]] = {}
        self._hosts = {machine.node: machine.address for machine in options.machines}

    @property
    def ranks(self) -> int:
        """Number of ranks that the remaining machines and GPUs can hold."""
        held = sum(machine_of(place) not in self.options.excluded for place in self._held)
        return sum(machine.ranks for machine in self.options.usable) - held

    def met(self, hellos: Sequence[Hello]) -> None:
        """Records where the ranks of a new gang run."""
        self._hosts |= {hello.machine: hello.host for hello in hellos}
        self._known |= {hello.place for hello in hellos}

    def succeeded(self, hellos: Sequence[Hello]) -> None:
        """Records that these ranks rendered a shot."""
        self._faults.succeeded(hello.place for hello in hellos)

    def proven(self, place: str) -> bool:
        """Returns whether a shot has succeeded at this place."""
        return self._faults.proven(place)

    def only(self, place: str) -> bool:
        """Returns whether no rank can run anywhere else."""
        usable = [machine.node for machine in self.options.usable]
        return usable == [machine_of(place)] and (self.options.device == "cpu" or self.ranks <= 1)

    @property
    def untried(self) -> bool:
        """Whether a machine without any rank so far seems to have room."""
        if self.full:
            return False
        new = {machine.node for machine in self.options.usable} - {machine_of(place) for place in self._known}
        usable = {place for place in self._known - self._held.keys() if machine_of(place) not in self.options.excluded}
        return bool(new) or (self.options.device == "cuda" and self.ranks > len(usable))

    async def failed(
        self, place: str, source: str, failure: str, reason: str, *, given_up: bool, elsewhere: bool
    ) -> Verdict | None:
        """Records a failed attempt. Leaves out the GPU or the machine if it is at fault.

        Args:
            reason: in words. Other arguments and the result are those of ``Faults.failed``.
        """
        verdict = self._faults.failed(place, source, failure, given_up=given_up, elsewhere=elsewhere)
        if verdict is None or verdict == "end":
            return verdict
        bad = machine_of(place) if verdict == "exclude machine" else place
        line = f"{self._named(bad)}: shots fail there in the same way: {reason}"
        return verdict if await self._leave_out(bad, line) else None

    def explain(self, place: str, failure: Failure) -> str:
        """Returns the line for a failure that every shot shares: the failure, the place and the remedy."""
        host = self._hosts.get(machine_of(place), "this machine")
        reason = failure.reason.rstrip(".")
        return f"every shot fails in the same way, last on {host}: {reason}. {failure.remedy(host)}"

    async def unfit(self, place: str, host: str, line: str) -> bool:
        """Records a start that failed at a place. Returns whether the GPU or the machine was left out for it.

        A whole machine on which shots succeeded is never left out for it.

        Args:
            host: name of the machine.
            line: the line to print.
        """
        self._hosts[machine_of(place)] = host
        count, last = self._unfit.get(place, (0, -APART_S))
        now = asyncio.get_running_loop().time()
        if now - last >= APART_S:
            self._unfit[place] = (count := count + 1, now)
        whole = place == machine_of(place)
        return count >= UNFIT_AFTER and not (whole and self.proven(place)) and await self._leave_out(place, line)

    async def _leave_out(self, place: str, line: str) -> bool:
        """Keeps later gangs off a GPU or a machine. Returns False if the GPU did not become free in time."""
        machine, _, gpu = place.partition("/")
        async with self._holding[machine]:  # two at once would wait for each other's GPU
            if place in self._held or machine in self.options.excluded:
                return True
            if not gpu:
                self.options = replace(self.options, excluded=self.options.excluded | {machine})
            elif (holder := await self._hold(machine, gpu)) is not None:
                self._held[place] = holder
            else:
                return False
        self._faults.exclude(place)
        self.left_out.append(line)
        return True

    def _named(self, place: str) -> str:
        """Returns a place in words."""
        machine, _, gpu = place.partition("/")
        host = self._hosts.get(machine, machine)
        return f"{host}, GPU {gpu}" if gpu else host
