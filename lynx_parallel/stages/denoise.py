"""The denoising loop: schedule, guidance, steps. It does no I/O, moves nothing between devices, and shows nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from lynx_parallel.inputs.guidance import BranchName
from lynx_parallel.model.transformer import Branch, LynxTransformer
from lynx_parallel.stages.resume_state import ResumeState, capture, restore
from lynx_parallel.stages.schedulers import Scheduler


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
    """The state after a step, for callbacks. Tensors are identical on every rank.

    Attributes:
        velocities: of the guidance branches; ``velocity`` is their sum.
        latents: [1, 16, T, h, w] fp32 after the step; ``sample`` are those before it.
    """

    index: int
    total: int
    velocities: Mapping[BranchName, torch.Tensor]
    latents: torch.Tensor
    scheduler: Scheduler
    sample: torch.Tensor
    velocity: torch.Tensor

    def state(self) -> ResumeState:
        """Returns the state from which the shot can resume."""
        return capture(self.scheduler, self.latents)

    def predicted_x0(self) -> torch.Tensor:
        """Returns the final latents that this step predicts: x0 = x − σ·v, as flow matching defines the velocity."""
        return self.sample - self.scheduler.sigmas[self.index].to(self.sample) * self.velocity


class Phase(NamedTuple):
    """Guidance for a range of steps.

    Attributes:
        coefficients: of the branches, in summing order.
        branches: static keys and values of those that this rank computes.
        transformer: that denoises these steps.
        start: mask and latents of the first frame, [1, 20, T, h, w], for a base that begins with a picture.
    """

    coefficients: Mapping[BranchName, float]
    branches: Mapping[BranchName, Branch]
    transformer: LynxTransformer
    start: torch.Tensor | None = None


@torch.no_grad()
def denoise(
    scheduler: Scheduler,
    latents_BCThw: torch.Tensor,
    phase_of: Callable[[int], Phase],
    on_step: Callable[[Step], None] | None = None,
    guidance: LocalGuidance | None = None,
    start: ResumeState | None = None,
    until: int | None = None,
) -> torch.Tensor:
    """Denoises [1, 16, T, h, w] fp32 noise to final latents, fp32, identical on every rank.

    Args:
        scheduler: from ``schedulers.make_scheduler``; it is changed.
        phase_of: transformer and guidance of each step, by its number from 0.
        on_step: called after every step. An exception ends the loop.
        guidance: how the branches are split over ranks.
        start: state from which to resume; None starts from the noise.
        until: number of steps after which to end, with the latents so far; None makes all.
    """
    # diffusers' flow-matching classes have no such factor.
    latents, first = latents_BCThw * getattr(scheduler, "init_noise_sigma", 1.0), 0
    if start is not None and start.latents is not None:
        latents, first = start.latents, start.steps_done
        restore(scheduler, start)
    guidance = guidance or LocalGuidance()
    for index, timestep in list(enumerate(scheduler.timesteps))[first:until]:
        coefficients, branches, transformer, start_frame = phase_of(index)
        x, t = latents.to(transformer.dtype), timestep.expand(latents.shape[0])
        if start_frame is not None:
            x = torch.cat([x, start_frame.to(x.dtype)], dim=1)
        velocities = {name: transformer(x, t, branches[name]).float() for name in guidance.mine(list(coefficients))}
        velocities = guidance.share(velocities, list(coefficients), latents)
        # Summed in one fixed order, in fp32: every layout must give the same bits.
        velocity = torch.stack([coefficients[name] * velocities[name] for name in coefficients]).sum(dim=0)
        sample = latents
        latents = scheduler.step(velocity, timestep, sample, return_dict=False)[0]
        if on_step is not None:
            on_step(Step(index, len(scheduler.timesteps), velocities, latents, scheduler, sample, velocity))
    return latents
