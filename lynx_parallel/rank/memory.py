"""What a rank's device has room for."""

from __future__ import annotations

import torch

from lynx_parallel.parallel.room import Room, room_for
from lynx_parallel.rank.messages import RankConfig


def room_on(device: torch.device, config: RankConfig) -> Room:
    """Returns what the device has room for.

    On the CPU, projections stay in the file, because mapping them again takes almost no time
    (benchmarks/conditioning.py). Both experts stay: their files are mapped.
    """
    if device.type != "cuda":
        return Room(keep_projections=False, one_expert=config.one_expert)
    memory = torch.cuda.get_device_properties(device).total_memory
    return room_for(
        config.weights, memory, dtype=config.dtype, sharded=config.shard, tiled_decode=config.tiled_decode,
        tf32_decode=config.vae_dtype == "tf32", tasks=config.tasks,
        one_expert=config.one_expert,
    )  # fmt: skip
