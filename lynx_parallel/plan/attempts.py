"""The seeds of the attempts that a shot with a gate may make. Imports neither torch nor Ray."""

from __future__ import annotations

from dataclasses import replace

from lynx_parallel.inputs.manifest import Campaign, Shot
from lynx_parallel.output.takes import attempt_seed


def attempt_shots(campaign: Campaign, shot: Shot) -> list[Shot]:
    """Returns the shot with the seed of each attempt, its own first. Without a gate there is one attempt.

    No other take of the campaign has one of these seeds.
    """
    attempts = campaign.quality.attempts if campaign.quality is not None else 0
    taken = {other.seed for other in campaign.shots if other.takes_of == shot.takes_of} if attempts > 1 else set()
    seeds = [shot.seed]
    for number in range(2, attempts + 1):
        seeds.append(attempt_seed(shot.seed, number, {*taken, *seeds}))
    return [shot, *(replace(shot, sampling=shot.sampling.model_copy(update={"seed": seed})) for seed in seeds[1:])]
