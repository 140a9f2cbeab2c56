"""Renders the parts of a campaign one after another: the gangs of one pipeline end before those of the next start."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from lynx_parallel.engine.placement import StartOptions
from lynx_parallel.engine.run import Run
from lynx_parallel.engine.supervisor import STOP_WITHIN_S, Supervisor
from lynx_parallel.plan.plan import Item


class InTurn:
    """Makes the shots of several runs, one run after another. Each run has the weights of one pipeline.

    Args:
        runs: each with its shots to render or encode. They share one summary.
        options: for starting gangs.

    Attributes:
        current: the supervisor that is at work.

    Raises:
        InputErrors, ClusterError: the options ask for more than the cluster can hold.
    """

    def __init__(self, runs: Sequence[tuple[Run, Sequence[Item]]], options: StartOptions):
        self.supervisors = [Supervisor(run, todo, options) for run, todo in runs]
        self.current = self.supervisors[0]

    async def make_all(self) -> None:
        """Returns when every shot is done or failed, or when the run ends early. Raises as ``Supervisor.make_all``."""
        for number, supervisor in enumerate(self.supervisors):
            self.current = supervisor
            if number:
                supervisor.report_pipeline()
            await supervisor.make_all()
            if supervisor.ended:
                for untried in self.supervisors[number + 1 :]:
                    untried.not_tried()
                return

    async def save_and_stop(self, work: asyncio.Future[None], within: float | None = STOP_WITHIN_S) -> None:
        """As ``Supervisor.save_and_stop``, for the run that is at work."""
        await self.current.save_and_stop(work, within)
