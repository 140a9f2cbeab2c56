"""Saves and loads resume states: a shot's latents and the whole state of its scheduler after some steps.

safetensors, never a pickle; written atomically; bound to the latents digest; under a checksum of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from lynx_parallel.output.atomic import atomic_write
from lynx_parallel.output.checksums import CHECKSUM_KEY, DIGEST, add_checksum, metadata_of


@dataclass(frozen=True)
class ResumeState:
    """The state of a shot between two steps. Without latents, the shot starts at its first step.

    Attributes:
        latents: [1, 16, T, h, w] fp32.
        last_sample: the same shape; the sample from which UniPC's corrector starts. None for other schedulers.
        model_outputs: [k, 1, 16, T, h, w]; memory of UniPC or DPM-Solver, oldest first, k ≤ its order. None for others.
        counters: int64 [3]: steps done, ``lower_order_nums``, ``this_order``.
    """

    latents: torch.Tensor | None = None
    last_sample: torch.Tensor | None = None
    model_outputs: torch.Tensor | None = None
    counters: torch.Tensor | None = None

    @property
    def steps_done(self) -> int:
        return 0 if self.counters is None else int(self.counters[0])


def capture(scheduler: Any, latents: torch.Tensor) -> ResumeState:
    """Returns the state after a step: the latents, and the whole state of the scheduler.

    Args:
        scheduler: of ``schedulers.make_scheduler``.
    """
    memory = [output for output in getattr(scheduler, "model_outputs", []) if output is not None]
    counters = (getattr(scheduler, name, 0) for name in ("lower_order_nums", "this_order"))
    return ResumeState(
        latents=latents,
        last_sample=getattr(scheduler, "last_sample", None),
        model_outputs=torch.stack(memory) if memory else None,
        counters=torch.tensor([scheduler.step_index, *counters]),
    )


def restore(scheduler: Any, state: ResumeState) -> None:
    """Gives a new scheduler of ``schedulers.make_scheduler`` the state that ``capture`` returned."""
    assert state.counters is not None
    done, lower_order_nums, this_order = (int(n) for n in state.counters)
    scheduler._step_index = done
    if state.model_outputs is None:
        return
    order, memory = scheduler.config.solver_order, list(state.model_outputs)
    scheduler.model_outputs = [None] * (order - len(memory)) + memory
    scheduler.lower_order_nums = lower_order_nums
    if state.last_sample is not None:  # UniPC
        seen = list(scheduler.timesteps[max(done - order, 0) : done])
        scheduler.timestep_list = [None] * (order - len(seen)) + seen
        scheduler.this_order, scheduler.last_sample = this_order, state.last_sample


def save_resume_state(path: Path, state: ResumeState, digest: str) -> None:
    """Writes a state; ``digest`` is the shot's latents digest."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in vars(state).items() if tensor is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.write_bytes(add_checksum(save(tensors), {DIGEST: digest}))


def load_resume_state(
    path: Path, digest: str, device: torch.device, on_damage: Callable[[Path], None] = lambda path: None
) -> ResumeState:
    """Returns the state at ``path``, or the state before the first step if this shot has none.

    A state of an earlier version has no checksum and is accepted without one.

    Args:
        on_damage: called with the path of a state that is damaged. The beginning is returned then.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return ResumeState()
    metadata = metadata_of(data)
    # An earlier version wrote the digest alone. Anything else without a checksum has lost it.
    if metadata is not None and (CHECKSUM_KEY in metadata or set(metadata) <= {DIGEST}):
        if metadata.get(DIGEST) != digest:
            return ResumeState()
        try:
            return ResumeState(**{name: tensor.to(device) for name, tensor in load(data).items()})
        except (SafetensorError, TypeError):
            pass
    on_damage(path)
    return ResumeState()
