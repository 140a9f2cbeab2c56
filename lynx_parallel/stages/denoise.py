"""The denoising loop: schedule, guidance, steps. No I/O, no device moves, no progress bar."""

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
    """All guidance branches on this rank; ``parallel.xdit.SplitGuidance`` spreads them over a gang."""

    def mine(self, names: Sequence[BranchName]) -> list[BranchName]:
        """The branches that this rank computes."""
        return list(names)

    def share(
        self, velocities: dict[BranchName, torch.Tensor], names: Sequence[BranchName], like: torch.Tensor
    ) -> dict[BranchName, torch.Tensor]:
        """This rank's branches → all of ``names``, on every rank; ``like``: a tensor of a velocity's shape and type."""
        return velocities


@dataclass(frozen=True)
class Step:
    """What a callback sees after each step; tensors are alike on every rank."""

    index: int
    total: int
    velocities: Mapping[BranchName, torch.Tensor]
    latents: torch.Tensor
    scheduler: UniPCMultistepScheduler

    def state(self) -> ResumeState:
        """All it takes to go on from here."""
        return capture(self.scheduler, self.latents)


def make_scheduler(
    config: Mapping[str, Any],
    num_inference_steps: int,
    *,
    flow_shift: float,
    sigma_schedule: Literal["lynx", "diffusers"],
    device: torch.device | str = "cpu",
) -> UniPCMultistepScheduler:
    """UniPC with its timesteps set.

    ``lynx`` gives the sigmas of the reference's diffusers 0.33.1 (first timestep 999), ``diffusers``
    those of today's; the difference moves final latents by 2–4 %.
    """
    scheduler = UniPCMultistepScheduler.from_config({**config, "flow_shift": flow_shift})
    sigmas = None
    if sigma_schedule == "lynx":
        alphas = np.linspace(1, 1 / scheduler.config.num_train_timesteps, num_inference_steps + 1)
        sigmas = np.flip(1 - alphas)[:num_inference_steps].copy()
    scheduler.set_timesteps(num_inference_steps, device=device, sigmas=sigmas)
    # Left to itself, UniPC looks for the first timestep, and skips a step where two round to the same number.
    scheduler.set_begin_index(0)
    return scheduler


class Phase(NamedTuple):
    """Guidance over a run of steps.

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
    """Noise [1, 16, T, h, w] fp32 → final latents, fp32, alike on every rank.

    Args:
        scheduler: fresh from ``make_scheduler``; it is advanced.
        phase_of: guidance of each step, by its number from 0.
        on_step: called after every step; an exception it raises ends the loop.
        guidance: how the branches lie over ranks.
        start: goes on from this state instead of the noise.
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
