"""The state of a run: why, if at all, it tries no more shots. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from lynx_parallel.engine.summary import Summary


class Phase(Enum):
    """What a run does. A run leaves the last three phases only by ending."""

    STARTING = "no gang has started yet"
    RUNNING = "gangs have started and make shots"
    GIVEN_UP = "too many shots failed, or the disk stays full: the other shots are not tried"
    FAULTY = "a fault that all shots share ends the run"
    STOPPED = "a signal or --stop-after ends the run"


class RunState:
    """Derives the phase from the summaries, which the driver also reads, and from two facts of its own.

    Args:
        summaries: of all campaigns. A stop or a fault is in each of them.

    Attributes:
        began: whether a gang has ever started.
        reason: why the other shots are not tried, once the run is given up.
    """

    def __init__(self, summaries: Sequence[Summary]):
        self.began = False
        self.reason = ""
        self._summaries = summaries

    @property
    def phase(self) -> Phase:
        """The current phase. A stop by the user comes before a fault, and a fault before giving up."""
        if self._summaries[0].stopped_by is not None:
            return Phase.STOPPED
        if self._summaries[0].fault:
            return Phase.FAULTY
        if self.reason:
            return Phase.GIVEN_UP
        return Phase.RUNNING if self.began else Phase.STARTING

    @property
    def stopped(self) -> bool:
        return self.phase is Phase.STOPPED

    @property
    def ends(self) -> bool:
        """Whether no further shot is tried."""
        return self.phase in (Phase.GIVEN_UP, Phase.FAULTY, Phase.STOPPED)

    def gang_started(self) -> None:
        self.began = True

    def give_up(self, reason: str) -> None:
        """Ends the run without a fault. Only the first reason is kept."""
        self.reason = self.reason or reason

    def fault(self, reason: str) -> None:
        """Ends the run for a fault that every shot shares. Only the first reason is kept."""
        for summary in self._summaries:
            summary.fault = summary.fault or reason
