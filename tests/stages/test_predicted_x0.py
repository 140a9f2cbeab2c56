"""What a step predicts: for a velocity field that leads straight to one x0, every step predicts that x0."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lynx_parallel.inputs.sampling import Sampling, SchedulerName
from lynx_parallel.stages.denoise import Phase, Step, denoise
from lynx_parallel.stages.schedulers import make_scheduler

CONFIG = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "num_train_timesteps": 1000, "solver_order": 2}


@pytest.mark.parametrize("name", ["unipc", "dpm++", "euler", "lcm", "rcm"])
def test_every_step_predicts_the_end(name: SchedulerName) -> None:
    generator = torch.Generator().manual_seed(0)
    noise, end = (torch.randn(1, 16, 2, 4, 4, generator=generator) for _ in range(2))
    sampling = Sampling(num_inference_steps=4, scheduler=name, sigma_schedule="lynx")
    scheduler = make_scheduler(CONFIG, sampling, torch.device("cpu"))

    class Straight:
        """v = (x − x0) / σ: the velocity of the straight line through x and x0."""

        dtype = torch.float32
        step = 0

        def __call__(self, x: torch.Tensor, t: torch.Tensor, branch: Any) -> torch.Tensor:
            self.step += 1
            return (x - end) / scheduler.sigmas[self.step - 1]

    steps: list[Step] = []
    transformer: Any = Straight()
    phase = Phase({"c": 1.0}, {"c": None}, transformer)  # type: ignore[dict-item]
    final = denoise(scheduler, noise, lambda index: phase, steps.append)
    assert len(steps) == 4
    for step in steps:
        torch.testing.assert_close(step.predicted_x0(), end, atol=1e-5, rtol=0)
    torch.testing.assert_close(final, end, atol=1e-4, rtol=0)
