"""The progress of a rank, and the time of the driver's last call."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from lynx_parallel.errors import RenderError
from lynx_parallel.model.tensor_files import LOADED
from lynx_parallel.rank.messages import Progress

LEASE_FACTOR = 1.5
"""A rank ends its shot after this many times ``hung_after`` without a call from the driver."""


class Pulse:
    """Answers the driver's progress calls, and ends the shot if they stop.

    Args:
        hung_after: seconds, as in ``RankConfig``.
        device: of the rank.
    """

    def __init__(self, hung_after: float, device: torch.device):
        self._hung_after = hung_after
        self._device = device
        self._progress = Progress(0, 0, 0.0)
        self._stepped = self._heard = time.monotonic()
        self._waits_for = ""

    def progress(self) -> Progress:
        """Returns the progress of the current shot. Each call also tells the rank that the driver is alive."""
        self._heard = time.monotonic()
        memory, memory_total = _memory_of(self._device)
        return replace(
            self._progress, age=time.monotonic() - self._stepped, waits_for=self._waits_for, read=LOADED.read,
            to_read=LOADED.to_read, memory=memory, memory_total=memory_total,
        )  # fmt: skip

    def prepare(self, done: int, total: int) -> None:
        """Records a prepared shot of which ``done`` of ``total`` steps are done."""
        self._stepped, self._progress = time.monotonic(), Progress(done, total, 0.0)

    def begin(self, done: int, total: int) -> None:
        """Records that the shot begins."""
        self.prepare(done, total)
        self._heard = time.monotonic()

    def step(self, done: int, total: int) -> None:
        """Records a finished step.

        Raises:
            RenderError: the driver has been silent for too long. It counts this rank as hung and has the shot made
                by another gang.
        """
        self._stepped = time.monotonic()
        if (silent := self._stepped - self._heard) > LEASE_FACTOR * self._hung_after:
            raise RenderError(f"no word from the driver for {silent:.0f} s", "hung")
        self._progress = Progress(done, total, 0.0)

    def wait_for(self, reason: str) -> None:
        """Records what the rank waits for, or nothing if empty. A rank that waits does not hang."""
        if reason or self._waits_for:
            self._stepped = time.monotonic()
        self._waits_for = reason


def _memory_of(device: torch.device) -> tuple[int, int]:
    """Returns the bytes in use on a GPU and all of it; zeros on the CPU, and before the rank uses its GPU."""
    if device.type != "cuda" or not torch.cuda.is_initialized():
        return 0, 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free, total
