"""The written-out sampler against diffusers' own, for what is not recorded: both schedules, many steps."""

from __future__ import annotations

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor

from tests.helpers.golden_cases import relative_error
from tests.upstream import sampler

FLOW_SHIFT = 3.0


def library_scheduler(name: str, steps: int) -> UniPCMultistepScheduler:
    """diffusers' UniPC as Wan configures it, given Lynx's levels where they are asked for."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT)
    if name == "lynx":
        scheduler.set_timesteps(sigmas=sampler.lynx_fractions(steps).copy())
    else:
        scheduler.set_timesteps(steps)
    return scheduler


def bent_velocity(x: Tensor, timestep: int) -> Tensor:
    """Not linear in x, and different at each timestep, so that every weight of the solver counts."""
    return torch.sin(3 * x + timestep / 200) + x.roll(1, -1)


@pytest.mark.parametrize("name", ["lynx", "diffusers"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 20, 50])
def test_agrees_with_diffusers(name: str, steps: int) -> None:
    scheduler = library_scheduler(name, steps)
    sigmas, timesteps = sampler.schedule(name, steps, FLOW_SHIFT)
    assert torch.equal(sigmas, scheduler.sigmas)
    assert torch.equal(timesteps, scheduler.timesteps)

    noise = torch.randn(1, 4, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    x = noise
    for timestep in scheduler.timesteps:
        x = scheduler.step(bent_velocity(x, int(timestep)), timestep, x, return_dict=False)[0]
    # the library works out its coefficients in fp32, where those of small steps lose digits
    assert relative_error(sampler.sample(bent_velocity, noise, sigmas, timesteps), x) < 1e-5
