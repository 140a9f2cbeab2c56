"""Renders the parts of campaigns one after another: the gangs of one pipeline end before those of the next start."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from lynx_parallel.engine.placement import StartOptions
from lynx_parallel.engine.run import Run
from lynx_parallel.engine.supervisor import STOP_WITHIN_S, Supervisor
from lynx_parallel.plan.plan import Item


class InTurn:
    """Makes the shots of several pipelines, one pipeline after another.

    Args:
        turns: for each pipeline, the runs of the campaigns that use it, each with its shots to render or encode.
        options: for starting gangs.

    Attributes:
        current: the supervisor that is at work.

    Raises:
        InputErrors, ClusterError: the options ask for more than the cluster can hold.
    """

    def __init__(self, turns: Sequence[Sequence[tuple[Run, Sequence[Item]]]], options: StartOptions):
        self.supervisors = [Supervisor(todo, options) for todo in turns]
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
        """As ``Supervisor.save_and_stop``, for the pipeline that is at work."""
        await self.current.save_and_stop(work, within)


def together(runs: Sequence[tuple[Run, Sequence[Item]]]) -> list[list[tuple[Run, Sequence[Item]]]]:
    """Returns the runs in turns. Runs of different campaigns with the same weights share a turn, and one queue."""
    found: list[list[tuple[Run, Sequence[Item]]]] = []
    for run, todo in runs:
        turn = next((turn for turn in found if all(_can_share(run, other) for other, _ in turn)), None)
        if turn is None:
            found.append([(run, todo)])
        else:
            turn.append((run, todo))
    return found


def _can_share(one: Run, other: Run) -> bool:
    """Returns whether two runs are of different campaigns, and their ranks load the same files in the same way."""
    return one.output is not other.output and _loaded(one) == _loaded(other)


def _loaded(run: Run) -> tuple[object, ...]:
    return run.campaign.pipeline.model, run.weights, run.face, run.weight_digests
