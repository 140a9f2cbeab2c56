"""The scheduler as the stage sets it up."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.stages.schedulers import make_scheduler

CONFIG = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "num_train_timesteps": 1000, "solver_order": 2}


@pytest.mark.parametrize(
    ("schedule", "flow_shift", "steps"), [("lynx", 3.0, 600), ("lynx", 8.0, 150), ("diffusers", 5.0, 250)]
)
def test_no_step_is_skipped_where_timesteps_round_to_the_same_number(
    schedule: Literal["lynx", "diffusers"], flow_shift: float, steps: int
) -> None:
    scheduler = make_scheduler(
        CONFIG, Sampling(num_inference_steps=steps, flow_shift=flow_shift, sigma_schedule=schedule)
    )
    assert scheduler.timesteps[0] == scheduler.timesteps[1]
    sample = torch.zeros(1, 1)
    for done, timestep in enumerate(scheduler.timesteps, start=1):
        sample = scheduler.step(torch.ones(1, 1), timestep, sample, return_dict=False)[0]
        assert scheduler.step_index == done
    # A constant velocity, all the way from the first sigma to none.
    assert sample.item() == pytest.approx(-scheduler.sigmas[0].item(), rel=1e-4)
