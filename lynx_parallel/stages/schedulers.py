"""Schedulers by name: the sigmas of a shot and the solver that makes its steps.

``unipc``, ``dpm++`` and ``dpm++_sde`` are diffusers' classes. ``euler``, ``lcm`` and ``rcm`` are one formula each, with
the interface of diffusers' schedulers: diffusers' own flow-matching classes shift the sigmas twice.

A model of flow matching predicts the velocity v = noise − video, and a latent at σ is (1 − σ)·video + σ·noise. Noise
that a step adds is drawn on the CPU from the shot's seed and the number of the step. So all ranks, every layout and a
resumed shot get the same noise.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.sampling import RCM_STEPS, Sampling

_RCM_ANGLES = (math.atan(80.0), 1.5, 1.4, 1.0)
"""Angles of rCM's steps in TrigFlow, in radians, of NVlabs/rcm. The first belongs to its largest sigma, 80."""
assert len(_RCM_ANGLES) == RCM_STEPS


class Scheduler(Protocol):
    """What the denoising loop uses of a scheduler, under diffusers' names.

    Attributes:
        sigmas: [steps + 1] fp32 on the CPU, falling to 0.
        timesteps: [steps], the model's timestep of each step: 1000·σ.
        init_noise_sigma: factor of the initial noise; may be missing.
    """

    sigmas: torch.Tensor
    timesteps: torch.Tensor
    init_noise_sigma: float

    @property
    def step_index(self) -> int: ...

    def step(
        self, model_output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, return_dict: bool = True
    ) -> Any: ...


def make_scheduler(config: Mapping[str, Any], sampling: Sampling, device: torch.device | str = "cpu") -> Scheduler:
    """Returns a shot's scheduler at its first step.

    Args:
        config: of the base's scheduler, which is UniPC's.
    """
    name, given = sampling.scheduler, given_sigmas(sampling)
    if name == "unipc" and given is None:
        return _unipc(config, sampling, device)
    sigmas = default_sigmas(sampling) if given is None else given
    if name == "euler":
        return EulerScheduler(sigmas, device)
    if name in ("lcm", "rcm"):
        scale = sigmas[0] if name == "rcm" else 1.0
        return RenoisingScheduler(sigmas, device, seed=sampling.seed, init_noise_sigma=scale)
    scheduler: UniPCMultistepScheduler | DPMSolverMultistepScheduler
    if name == "unipc":
        scheduler = UniPCMultistepScheduler.from_config(config)
    else:
        kind = "sde-dpmsolver++" if name == "dpm++_sde" else "dpmsolver++"
        scheduler = _SeededDPMSolver.from_config({**config, "algorithm_type": kind, "solver_type": "midpoint"})
        scheduler.seed = sampling.seed
    scheduler.set_timesteps(len(sigmas))
    # UniPC divides by the logarithm of 1 − σ, which is infinite at 1; diffusers does the same. In DPM-Solver, as in
    # Wan's own, an infinitely long first step means that the second step has no slope to use.
    first = min(sigmas[0], 1 - 1e-6) if name == "unipc" else sigmas[0]
    scheduler.sigmas = torch.tensor([first, *sigmas[1:], 0.0])
    scheduler.timesteps = _timesteps(sigmas, device)
    scheduler.set_begin_index(0)
    return scheduler


def own_scheduler(
    own: Scheduler | Callable[[Sampling], Scheduler], sampling: Sampling, device: torch.device | str = "cpu"
) -> Scheduler:
    """Returns a caller's own scheduler at its first step.

    Args:
        own: a function of the settings, which returns a new scheduler; or a scheduler, of which a copy is made. If it
            has ``set_timesteps``, as diffusers' schedulers have, that is called with the number of steps.

    Raises:
        InputErrors: it is no scheduler, or explicit ``sigmas`` or ``timesteps`` are set, which it would not get.
    """
    if callable(own):
        made = own(sampling)
    else:
        made = copy.deepcopy(own)
        if hasattr(made, "set_timesteps"):
            if given_sigmas(sampling) is not None:
                remedy = "give a function that makes it"
                raise InputErrors([f"scheduler: {type(own).__name__}: gets no sigmas or timesteps: {remedy}"])
            made.set_timesteps(sampling.num_inference_steps, device=device)
        if hasattr(made, "set_begin_index"):
            made.set_begin_index(0)
    if not all(hasattr(made, name) for name in ("step", "timesteps")):
        allowed = "must be a name, a scheduler of diffusers, or a function that makes a scheduler"
        raise InputErrors([f"scheduler: of type {type(made).__name__}: {allowed}"])
    return made


def given_sigmas(sampling: Sampling) -> list[float] | None:
    """Returns the sigmas of ``sigmas`` or ``timesteps``, or None. They are final: no shift applies."""
    if sampling.sigmas is not None:
        return list(sampling.sigmas)
    return None if sampling.timesteps is None else [timestep / 1000 for timestep in sampling.timesteps]


def default_sigmas(sampling: Sampling) -> list[float]:
    """Returns the sigmas of every scheduler but UniPC: 1 − i/N with ``flow_shift`` applied once; rCM has its own."""
    steps, shift = sampling.num_inference_steps, sampling.flow_shift
    if sampling.scheduler == "rcm":
        return [math.sin(angle) / (math.sin(angle) + math.cos(angle)) for angle in _RCM_ANGLES[:steps]]
    linear = [1 - i / steps for i in range(steps)]
    return [shift * sigma / (1 + (shift - 1) * sigma) for sigma in linear]


def step_noise(like: torch.Tensor, seed: int, step: int) -> torch.Tensor:
    """Returns the noise that a step adds: standard normal, of the shape and on the device of ``like``, fp32.

    Args:
        step: number of the step, from 0.
    """
    digest = hashlib.sha256(f"{seed}/{step}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
    return torch.randn(like.shape, generator=generator).to(like.device)


def _unipc(config: Mapping[str, Any], sampling: Sampling, device: torch.device | str) -> UniPCMultistepScheduler:
    """Returns UniPC with the sigmas of ``sigma_schedule``.

    ``lynx`` gives the sigmas of diffusers 0.33.1, which upstream uses (first timestep 999). ``diffusers`` gives those
    of the installed version. The difference changes final latents by 2 to 4 %.
    """
    scheduler = UniPCMultistepScheduler.from_config({**config, "flow_shift": sampling.flow_shift})
    steps, sigmas = sampling.num_inference_steps, None
    if sampling.sigma_schedule == "lynx":
        alphas = np.linspace(1, 1 / scheduler.config.num_train_timesteps, steps + 1)
        sigmas = np.flip(1 - alphas)[:steps].copy()
    scheduler.set_timesteps(steps, device=device, sigmas=sigmas)
    # By default, UniPC searches for the first timestep, and skips a step if two of them round to the same number.
    scheduler.set_begin_index(0)
    return scheduler


def _timesteps(sigmas: list[float], device: torch.device | str) -> torch.Tensor:
    return torch.tensor([1000 * sigma for sigma in sigmas], dtype=torch.float32, device=device)


class EulerScheduler:
    """x' = x + (σ' − σ)·v. The sigmas are used as they are. Attributes as in ``Scheduler``."""

    def __init__(self, sigmas: list[float], device: torch.device | str = "cpu", *, init_noise_sigma: float = 1.0):
        self.sigmas = torch.tensor([*sigmas, 0.0])
        self.timesteps = _timesteps(sigmas, device)
        self.init_noise_sigma = init_noise_sigma
        self._step_index = 0

    @property
    def step_index(self) -> int:
        return self._step_index

    def step(
        self, model_output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, return_dict: bool = True
    ) -> tuple[torch.Tensor]:
        """Returns the latents after the next step, as the only element of a tuple."""
        now, then = (float(sigma) for sigma in self.sigmas[self._step_index : self._step_index + 2])
        made = self._next(model_output, sample, now, then)
        self._step_index += 1
        return (made,)

    def _next(self, velocity: torch.Tensor, sample: torch.Tensor, now: float, then: float) -> torch.Tensor:
        return sample + (then - now) * velocity


class RenoisingScheduler(EulerScheduler):
    """x' = (1 − σ')·(x − σ·v) + σ'·ε with new noise ε in each step: LCM, DMD and rCM differ in their sigmas only."""

    def __init__(
        self, sigmas: list[float], device: torch.device | str = "cpu", *, seed: int, init_noise_sigma: float = 1.0
    ):
        super().__init__(sigmas, device, init_noise_sigma=init_noise_sigma)
        self._seed = seed

    def _next(self, velocity: torch.Tensor, sample: torch.Tensor, now: float, then: float) -> torch.Tensor:
        video = sample - now * velocity
        return video if then == 0 else (1 - then) * video + then * step_noise(sample, self._seed, self._step_index)


class _SeededDPMSolver(DPMSolverMultistepScheduler):
    """DPM-Solver++, whose noise depends on the seed and the step.

    Attributes:
        seed: of the shot.
    """

    seed: int

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, **options: Any) -> Any:
        noise = None
        if self.config.algorithm_type == "sde-dpmsolver++":
            noise = step_noise(sample, self.seed, self.step_index or 0)
        return super().step(model_output, timestep, sample, variance_noise=noise, **options)
