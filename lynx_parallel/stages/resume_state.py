"""Partial states: a shot's latents and its solver's whole memory after some steps, to go on from there.

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

from lynx_parallel.output.checksums import DIGEST, SEAL, metadata_of, seal
from lynx_parallel.output.files import atomic_write


@dataclass(frozen=True)
class Partial:
    """A state between two steps; without latents, the beginning.

    Attributes:
        latents: [1, 16, T, h, w] fp32.
        last_sample: the same shape; what UniPC's corrector starts from.
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


def capture(scheduler: UniPCMultistepScheduler, latents: torch.Tensor) -> Partial:
    """The state after a step: its result and the scheduler as the step left it."""
    return Partial(
        latents=latents,
        last_sample=scheduler.last_sample,
        model_outputs=torch.stack([output for output in scheduler.model_outputs if output is not None]),
        counters=torch.tensor([scheduler.step_index, scheduler.lower_order_nums, scheduler.this_order]),
    )


def restore(scheduler: UniPCMultistepScheduler, partial: Partial) -> None:
    """Puts a scheduler, fresh from ``make_scheduler``, where ``capture`` found another one."""
    assert partial.counters is not None
    assert partial.model_outputs is not None
    done, scheduler.lower_order_nums, scheduler.this_order = (int(n) for n in partial.counters)
    order, remembered = scheduler.config.solver_order, list(partial.model_outputs)
    scheduler.model_outputs = [None] * (order - len(remembered)) + remembered
    seen = list(scheduler.timesteps[max(done - order, 0) : done])
    scheduler.timestep_list = [None] * (order - len(seen)) + seen
    scheduler.last_sample = partial.last_sample
    scheduler._step_index = done


def save_partial(path: Path, partial: Partial, digest: str) -> None:
    """Writes a state; ``digest`` is the shot's latents digest."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in vars(partial).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.write_bytes(seal(save(tensors), {DIGEST: digest}))


def load_partial(
    path: Path, digest: str, device: torch.device, on_damage: Callable[[Path], None] = lambda path: None
) -> Partial:
    """Returns the state at ``path``, or the beginning if there is none of this shot.

    A state of an earlier version has no checksum and is accepted without one.

    Args:
        on_damage: called with the path of a state that is damaged. The beginning is returned then.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return Partial()
    metadata = metadata_of(data)
    # An earlier version wrote the digest alone. Anything else without a checksum has lost it.
    if metadata is not None and (SEAL in metadata or set(metadata) <= {DIGEST}):
        if metadata.get(DIGEST) != digest:
            return Partial()
        try:
            return Partial(**{name: tensor.to(device) for name, tensor in load(data).items()})
        except (SafetensorError, TypeError):
            pass
    on_damage(path)
    return Partial()
