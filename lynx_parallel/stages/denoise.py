"""The denoising loop: schedule, guidance, steps. It does no I/O, moves nothing between devices, and shows nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler

from lynx_parallel.inputs.guidance import BranchName
from lynx_parallel.model.transformer import Branch, LynxTransformer
from lynx_parallel.stages.resume_state import ResumeState, capture, restore


class LocalGuidance:
    """Computes all guidance branches on this rank. ``parallel.xdit.SplitGuidance`` splits them over a gang."""

    def mine(self, names: Sequence[BranchName]) -> list[BranchName]:
        """Returns the branches that this rank computes."""
        return list(names)

    def share(
        self, velocities: dict[BranchName, torch.Tensor], names: Sequence[BranchName], like: torch.Tensor
    ) -> dict[BranchName, torch.Tensor]:
        """Exchanges this rank's velocities for those of all ``names``, on every rank.

        Args:
            like: a tensor of a velocity's shape and type.
        """
        return velocities


@dataclass(frozen=True)
class Step:
    """The state after a step, for callbacks. Tensors are identical on every rank."""

    index: int
    total: int
    velocities: Mapping[BranchName, torch.Tensor]
    latents: torch.Tensor
    scheduler: UniPCMultistepScheduler

    def state(self) -> ResumeState:
        """Returns the state from which the shot can resume."""
        return capture(self.scheduler, self.latents)


def make_scheduler(
    config: Mapping[str, Any],
    num_inference_steps: int,
    *,
    flow_shift: float,
    sigma_schedule: Literal["lynx", "diffusers"],
    device: torch.device | str = "cpu",
) -> UniPCMultistepScheduler:
    """Returns UniPC with its timesteps set.

    ``lynx`` gives the sigmas of diffusers 0.33.1, which upstream uses (first timestep 999). ``diffusers`` gives those
    of the installed version. The difference changes final latents by 2 to 4 %.
    """
    scheduler = UniPCMultistepScheduler.from_config({**config, "flow_shift": flow_shift})
    sigmas = None
    if sigma_schedule == "lynx":
        alphas = np.linspace(1, 1 / scheduler.config.num_train_timesteps, num_inference_steps + 1)
        sigmas = np.flip(1 - alphas)[:num_inference_steps].copy()
    scheduler.set_timesteps(num_inference_steps, device=device, sigmas=sigmas)
    # By default, UniPC searches for the first timestep, and skips a step if two of them round to the same number.
    scheduler.set_begin_index(0)
    return scheduler


class Phase(NamedTuple):
    """Guidance for a range of steps.

    Attributes:
        coefficients: of the branches, in summing order.
        branches: static keys and values of those that this rank computes.
    """

    coefficients: Mapping[BranchName, float]
    branches: Mapping[BranchName, Branch]


@torch.no_grad()
def denoise(
    transformer: LynxTransformer,
    scheduler: UniPCMultistepScheduler,
    latents_BCThw: torch.Tensor,
    phase_of: Callable[[int], Phase],
    on_step: Callable[[Step], None] | None = None,
    guidance: LocalGuidance | None = None,
    start: ResumeState | None = None,
) -> torch.Tensor:
    """Denoises [1, 16, T, h, w] fp32 noise to final latents, fp32, identical on every rank.

    Args:
        scheduler: from ``make_scheduler``; it is changed.
        phase_of: guidance of each step, by its number from 0.
        on_step: called after every step. An exception ends the loop.
        guidance: how the branches are split over ranks.
        start: state from which to resume; None starts from the noise.
    """
    latents, first = latents_BCThw, 0
    if start is not None and start.latents is not None:
        latents, first = start.latents, start.steps_done
        restore(scheduler, start)
    guidance = guidance or LocalGuidance()
    for index, timestep in list(enumerate(scheduler.timesteps))[first:]:
        coefficients, branches = phase_of(index)
        x, t = latents.to(transformer.dtype), timestep.expand(latents.shape[0])
        velocities = {name: transformer(x, t, branches[name]).float() for name in guidance.mine(list(coefficients))}
        velocities = guidance.share(velocities, list(coefficients), latents)
        # Summed in one fixed order, in fp32: every layout must give the same bits.
        velocity = torch.stack([coefficients[name] * velocities[name] for name in coefficients]).sum(dim=0)
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        if on_step is not None:
            on_step(Step(index, len(scheduler.timesteps), velocities, latents, scheduler))
    return latents
