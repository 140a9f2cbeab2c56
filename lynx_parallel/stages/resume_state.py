"""Saves and loads resume states: a shot's latents and the whole state of its scheduler after some steps.

safetensors, never a pickle; written atomically; bound to the latents digest; under a checksum of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UniPCMultistepScheduler
from safetensors import SafetensorError
from safetensors.torch import load, save

from lynx_parallel.output.atomic import atomic_write
from lynx_parallel.output.checksums import CHECKSUM_KEY, DIGEST, add_checksum, metadata_of


@dataclass(frozen=True)
class ResumeState:
    """The state of a shot between two steps. Without latents, the shot starts at its first step.

    Attributes:
        latents: [1, 16, T, h, w] fp32.
        last_sample: the same shape; the sample from which UniPC's corrector starts.
        model_outputs: [k, 1, 16, T, h, w]; UniPC's memory, oldest first, k ≤ its order.
        counters: int64 [3]: steps done, ``lower_order_nums``, ``this_order``.
    """

    latents: torch.Tensor | None = None
    last_sample: torch.Tensor | None = None
    model_outputs: torch.Tensor | None = None
    counters: torch.Tensor | None = None

    @property
    def steps_done(self) -> int:
        return 0 if self.counters is None else int(self.counters[0])


def capture(scheduler: UniPCMultistepScheduler, latents: torch.Tensor) -> ResumeState:
    """Returns the state after a step: the latents, and the scheduler as the step left it."""
    return ResumeState(
        latents=latents,
        last_sample=scheduler.last_sample,
        model_outputs=torch.stack([output for output in scheduler.model_outputs if output is not None]),
        counters=torch.tensor([scheduler.step_index, scheduler.lower_order_nums, scheduler.this_order]),
    )


def restore(scheduler: UniPCMultistepScheduler, state: ResumeState) -> None:
    """Puts a scheduler, fresh from ``make_scheduler``, where ``capture`` found another one."""
    assert state.counters is not None
    assert state.model_outputs is not None
    done, scheduler.lower_order_nums, scheduler.this_order = (int(n) for n in state.counters)
    order, digest_cache = scheduler.config.solver_order, list(state.model_outputs)
    scheduler.model_outputs = [None] * (order - len(digest_cache)) + digest_cache
    seen = list(scheduler.timesteps[max(done - order, 0) : done])
    scheduler.timestep_list = [None] * (order - len(seen)) + seen
    scheduler.last_sample = state.last_sample
    scheduler._step_index = done


def save_resume_state(path: Path, state: ResumeState, digest: str) -> None:
    """Writes a state; ``digest`` is the shot's latents digest."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in vars(state).items()}
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
