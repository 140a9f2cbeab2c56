"""Command-line options for where and how long to render. They never change a pixel."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.problems import one_of, shown_value

Device = Literal["auto", "cuda", "cpu"]
DEVICES = ("auto", "cuda", "cpu")
Attention = Literal["auto", "flash3", "flash", "cudnn", "sdpa"]
ATTENTION: tuple[Attention, ...] = get_args(Attention)
CUDA_ONLY = ("flash3", "flash", "cudnn")
"""Attention kernels that run on CUDA alone, and not in float32."""
HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """Checked options.

    Attributes:
        ulysses, ring, guidance: ranks per shot along each axis; None leaves it to the plan.
        gangs: how many shots are rendered side by side; None: as many as there are GPUs for.
        max_gpus: GPUs to use at most.
        device: what ranks run on.
        shard_weights: split the transformer's weights over the ranks that share a shot's tokens.
        one_expert: hold only one of two transformers (Wan2.2 A14B) on a GPU, even if there is room for both.
        attention: kernel on CUDA; ``auto`` takes the fastest that works on the GPU in the pipeline's dtype.
        tiled_decode: decode tile by tile: less memory, other pixels.
        stop_after: seconds after which the run puts its shot aside and ends.
        max_failures: number of failed shots that ends the run.
        hung_after: seconds without an answer after which a rank is given up; steps get ten times their median.
        save_every: seconds between two resume states of a shot at least; saving never takes more than 2 % of the time.
        address: of a running Ray cluster (``auto`` or ``host:port``); None starts one on this machine.

    Raises:
        InputErrors: one line per wrong option, naming it.
    """

    ulysses: int | None = None
    ring: int | None = None
    guidance: int | None = None
    gangs: int | None = None
    max_gpus: int | None = None
    device: Device = "auto"
    address: str | None = None
    shard_weights: bool = False
    one_expert: bool = False
    attention: Attention = "auto"
    tiled_decode: bool = False
    stop_after: float | None = None
    max_failures: int = 1_000_000
    hung_after: float = 60.0
    save_every: float = 30.0

    def __post_init__(self) -> None:
        lines: list[str] = []
        for name in ("ulysses", "ring", "guidance", "gangs", "max_gpus"):
            count = getattr(self, name)
            if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
                lines.append(f"--{name.replace('_', '-')} {count}: must be a whole number from 1")
        if isinstance(self.guidance, int) and self.guidance > 3:
            lines.append(f"--guidance {self.guidance}: must be 1, 2 or 3")
        if self.max_failures < 1:
            lines.append(f"--max-failures {self.max_failures}: must be a whole number from 1")
        if self.hung_after < 5:
            lines.append(f"--hung-after {self.hung_after:g}s: must be 5s or more")
        if self.attention not in ATTENTION:
            lines.append(f"--attention {self.attention}: must be {one_of(ATTENTION)}")
        if self.device not in DEVICES:
            lines.append(f"--device {shown_value(self.device)[1:-1]}: must be {one_of(DEVICES)}")
        if self.address is not None:
            shown = f"--address {shown_value(self.address)[1:-1]}"
            if self.address.startswith("ray://"):
                lines.append(
                    f"{shown}: Ray Client (ray://) is not supported: run on a machine of the cluster with"
                    " --address auto, or submit with `ray job submit`"
                )
            elif self.address not in ("auto", "local") and not HOST_PORT.fullmatch(self.address):
                lines.append(f"{shown}: must be auto, local or host:port")
        if lines:
            raise InputErrors(lines)


def read_duration(text: str, option: str) -> float:
    """Seconds of ``3h50m``, ``45m``, ``90s`` or ``1h``.

    Raises:
        InputErrors: none of these.
    """
    found = re.fullmatch(r"(?:(\d{1,4})h)?(?:(\d{1,5})m)?(?:(\d{1,6})s)?", text, re.ASCII)
    if not text or found is None:
        raise InputErrors([f"{option} {shown_value(text)[1:-1]}: must be a duration such as 3h50m, 45m or 90s"])
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(hours * 3600 + minutes * 60 + seconds)
