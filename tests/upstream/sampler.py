"""Sigma schedules of flow matching, and UniPC of order 2 (bh2, predicting the clean sample).

At noise level sigma a sample is x = (1 - sigma) * clean + sigma * noise, so a velocity v gives
clean = x - sigma * v. UniPC (Zhao et al. 2023, arXiv:2302.04867) steps in the half log-SNR,
snr = log((1 - sigma) / sigma). From level s to level t, with r = sigma_t / sigma_s and h = snr_t - snr_s, its
exponential integrator (1 - sigma_t) * (1 - exp(-h)) comes to 1 - r, and so every update has the form
    x_t = r * x_s + (1 - r) * (an average of the clean samples predicted over the step).
What the average is made of is all that differs between predictor and corrector, and first and second order.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

TRAIN_TIMESTEPS = 1000


def schedule(name: str, steps: int, flow_shift: float) -> tuple[Tensor, Tensor]:
    """Noise levels [steps + 1], fp32, the last one 0; and the timesteps that the model gets [steps], int64."""
    fractions = {"lynx": lynx_fractions, "diffusers": diffusers_fractions}[name](steps)
    sigmas = flow_shift * fractions / (1 + (flow_shift - 1) * fractions)
    if abs(sigmas[0] - 1) < 1e-6:
        sigmas[0] -= 1e-6  # the log-SNR of 1 is infinite
    timesteps = (sigmas * TRAIN_TIMESTEPS).astype(np.int64)  # cut, not rounded: 999.67 is 999
    return torch.tensor([*sigmas, 0.0], dtype=torch.float32), torch.from_numpy(timesteps)


def lynx_fractions(steps: int) -> np.ndarray:
    """Levels before the shift, as in diffusers 0.33, which Lynx was published with: starts below 1."""
    return (1 - np.linspace(1, 1 / TRAIN_TIMESTEPS, steps + 1))[:0:-1]


def diffusers_fractions(steps: int) -> np.ndarray:
    """Levels before the shift, as in later versions of diffusers: starts at 1."""
    return np.linspace(1, 1 / TRAIN_TIMESTEPS, steps + 1)[:-1]


def sample(velocity: Callable[[Tensor, int], Tensor], x: Tensor, sigmas: Tensor, timesteps: Tensor) -> Tensor:
    """From noise to a clean latent. `velocity(x, timestep)` is called once a step.

    Each call serves twice: it corrects the step that led here, then predicts the next.
    """
    levels = sigmas.tolist()  # rounded to fp32, which shows in 1 - sigma at the first level
    steps = len(timesteps)
    clean: list[Tensor] = []  # the clean sample predicted at each step so far
    start = x  # the corrected sample at the step before
    order = 1
    for i in range(steps):
        clean.append(x - levels[i] * velocity(x, int(timesteps[i])))
        if i > 0:
            x = correct(start, clean, levels, i, order)
        start = x
        order = 1 if i in (0, steps - 1) else 2  # no past at the first step; snr is infinite at the end
        x = predict(start, clean, levels, i, order)
    return x


def predict(x: Tensor, clean: list[Tensor], levels: list[float], i: int, order: int) -> Tensor:
    """UniP: from level i to level i + 1, with what was predicted up to level i."""
    average = clean[i]
    if order == 2:
        average = average + 0.5 * slope(clean, levels, i)
    return move(x, average, levels[i], levels[i + 1])


def correct(x: Tensor, clean: list[Tensor], levels: list[float], i: int, order: int) -> Tensor:
    """UniC: the step from level i - 1 to level i over again, now that `clean` is known at level i.

    `order` is the predictor's of that step. At order 2 the weights solve
        rho_1 + rho_2 = b_1
        k * rho_1 + rho_2 = b_2
    for bh2's b, and k the (negative) place of level i - 2 when level i - 1 is at 0 and level i at 1.
    """
    change = clean[i] - clean[i - 1]
    if order == 1:
        return move(x, clean[i - 1] + 0.5 * change, levels[i - 1], levels[i])
    h = snr(levels[i]) - snr(levels[i - 1])
    phi_2 = math.expm1(-h) / -h - 1
    phi_3 = phi_2 / -h - 1 / 2
    b_1, b_2 = phi_2 / math.expm1(-h), 2 * phi_3 / math.expm1(-h)
    rho_1 = (b_1 - b_2) / (1 - place(levels, i - 1))
    rho_2 = b_1 - rho_1
    average = clean[i - 1] + rho_1 * slope(clean, levels, i - 1) + rho_2 * change
    return move(x, average, levels[i - 1], levels[i])


def move(x: Tensor, average: Tensor, sigma_from: float, sigma_to: float) -> Tensor:
    """The one update: keep r of the sample, and fill up with `average`."""
    r = sigma_to / sigma_from
    return r * x + (1 - r) * average


def slope(clean: list[Tensor], levels: list[float], i: int) -> Tensor:
    """How `clean` will change from level i to i + 1, going on as it did from level i - 1 to i."""
    return (clean[i - 1] - clean[i]) / place(levels, i)


def place(levels: list[float], i: int) -> float:
    """Where level i - 1 lies in log-SNR, when level i is at 0 and level i + 1 at 1."""
    return (snr(levels[i - 1]) - snr(levels[i])) / (snr(levels[i + 1]) - snr(levels[i]))


def snr(sigma: float) -> float:
    """The half log-SNR of a level strictly between 0 and 1."""
    return math.log(1 - sigma) - math.log(sigma)
