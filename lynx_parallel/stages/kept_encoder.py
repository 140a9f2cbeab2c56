"""Keeps the text encoder loaded between prompts, where there is memory for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Literal

import psutil
import torch

from lynx_parallel.inputs.decode_memory import VideoSize
from lynx_parallel.inputs.layout import Layout
from lynx_parallel.inputs.memory import predict
from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.model.experts import Experts
from lynx_parallel.stages.latents import LATENT_CHANNELS
from lynx_parallel.stages.prompt import TextEncoder

Place = Literal["device", "host"]
"""Where the text encoder waits for the next prompt: on the device, or in the machine's memory."""
HOST_MARGIN = 0.1
"""Share of the machine's available memory that must stay free beside a text encoder that waits in it."""


def waiting_place(
    encoder: int, *, device_free: int, host_free: int, needed: int, on_host: bool = False
) -> Place | None:
    """Returns where the text encoder waits while a video is rendered, or None to free it.

    It stays on the device if the video fits beside it. If not, it waits in the machine's memory: to copy it back
    takes about a second, to load it again takes many.

    Args:
        encoder: bytes of its weights.
        device_free: free bytes of the device, as if the encoder were not loaded.
        host_free: available bytes of the machine's memory, as if it were not loaded.
        needed: bytes that the video takes on the device beside the weights that are loaded.
        on_host: the device is the CPU, so both are the same memory.
    """
    if encoder + needed <= device_free:
        return "device"
    return "host" if not on_host and encoder <= (1 - HOST_MARGIN) * host_free else None


class KeptEncoder:
    """The text encoder of a pipeline, loaded when a prompt needs it.

    Attributes:
        keep: whether it stays loaded: True on the device, False not at all, None where memory allows.
        needed: returns the bytes that a video takes on the device beside the weights, such as ``video_bytes``.
        encoder: None if it is not loaded.
        loads: how often it was loaded.

    Args:
        base: model folder in diffusers layout.
    """

    def __init__(self, base: Path, *, dtype: torch.dtype, device: torch.device):
        self.keep: bool | None = False
        self.needed: Callable[[Sampling], int] = lambda sampling: 0
        self.encoder: TextEncoder | None = None
        self.loads = 0
        self._base, self._dtype, self._device = base, dtype, device

    def encode(self, prompts: Iterable[str], into: MutableMapping[str, torch.Tensor]) -> None:
        """Adds the missing embeddings of these prompts to a mapping, each [tokens, text_dim] on the CPU."""
        for prompt in dict.fromkeys(prompts):
            if prompt not in into:
                into[prompt] = self._on_device()(prompt).cpu()
        if self.keep is False:
            self.free()

    def make_room(self, sampling: Sampling) -> None:
        """Moves or frees the encoder if a video of these settings does not fit beside it."""
        if self.encoder is None or self.keep is not None:
            return
        size, on_device = self.encoder.bytes, self.encoder.device == self._device
        host = psutil.virtual_memory().available
        device = host if self._device.type == "cpu" else free_bytes(self._device)
        place = waiting_place(
            size,
            device_free=device + size * on_device,
            host_free=host + size * (not on_device),
            needed=self.needed(sampling),
            on_host=self._device.type == "cpu",
        )
        if place is None:
            self.free()
        elif place == "host":
            self.encoder.to("cpu")

    def free(self) -> None:
        """Frees the encoder. The next new prompt loads it again."""
        self.encoder = None

    def _on_device(self) -> TextEncoder:
        if self.encoder is None:
            self.encoder = TextEncoder(self._base, dtype=self._dtype, device=self._device)
            self.loads += 1
        self.encoder.to(self._device)
        return self.encoder


def video_bytes(experts: Experts, sampling: Sampling, *, tf32_decode: bool = False) -> int:
    """Returns the bytes that a video takes on one device, beside the weights that are on it, by ``predict``."""
    transformer = experts.transformers[0]
    config = transformer.config
    made = predict(
        {key: tuple(tensor.shape) for key, tensor in transformer.state_dict().items()},
        Layout(),
        dtype=str(transformer.dtype).removeprefix("torch."),
        sharded=False,
        size=VideoSize(sampling.width, sampling.height, sampling.num_frames),
        heads=config.num_attention_heads,
        tf32_decode=tf32_decode,
        first_frame=config.in_channels > LATENT_CHANNELS,
        experts=len(experts.transformers),
    )
    # Experts that take turns are on the CPU before the first step.
    waiting = made.weights if experts.one_at_a_time and not experts.moves else 0
    return made.total - made.weights + waiting


def free_bytes(device: torch.device) -> int:
    """Returns the bytes of a CUDA device that are free, or that torch holds and does not use."""
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + idle
