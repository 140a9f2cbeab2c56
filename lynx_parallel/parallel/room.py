"""Decides whether a device has room, by the prediction of ``inputs.memory``. Reads only headers of weights files."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from lynx_parallel.inputs.base_parts import base_parts
from lynx_parallel.inputs.decode_memory import VideoSize
from lynx_parallel.inputs.layout import Layout
from lynx_parallel.inputs.memory import VAE_BYTES, Prediction, Task, predict
from lynx_parallel.inputs.model_config import transformer_config
from lynx_parallel.inputs.weight_files import WeightFiles
from lynx_parallel.model.adapter_files import adapter_sources
from lynx_parallel.model.tensor_files import read_shapes, transformer_sources

MARGIN = 0.05
"""Share of a device's memory that the prediction must leave free: some of its parts are estimates."""
LARGEST = Task(VideoSize(1280, 720, 81), Layout())
"""The largest video that Wan2.1 was trained for, on one rank."""


def fits(made: Prediction, device_bytes: int) -> bool:
    """Returns whether a prediction leaves ``MARGIN`` of the device free."""
    return made.total <= (1 - MARGIN) * device_bytes


class Room(NamedTuple):
    """What the device holds.

    Attributes:
        keep_projections: idle projections stay on it.
        one_expert: of two transformers, only the one in use.
    """

    keep_projections: bool
    one_expert: bool = False


def room_for(
    weights: WeightFiles,
    device_bytes: int,
    *,
    dtype: str,
    sharded: bool,
    tiled_decode: bool = False,
    tf32_decode: bool = False,
    tasks: Collection[Task] = (),
    one_expert: bool = False,
) -> Room:
    """Returns the fastest way in which every task fits on a device. If none fits, the one that takes least memory.

    To move an expert takes longer than to read its projections again, so both experts stay before projections do.
    Counts elements in the dtype in which they are loaded. The files' size is no measure: they may be fp32.

    Args:
        device_bytes: memory of the device.
        dtype, sharded, tiled_decode, tf32_decode: as in ``predict``.
        tasks: sizes and layouts that may have to be rendered; ``LARGEST`` if empty.
        one_expert: of two transformers, hold only the one in use, even if there is room for both.

    Raises:
        CheckpointError: a file or key does not fit; names it.
    """
    config = transformer_config(weights)
    parts = base_parts(weights.base)
    experts = parts.experts
    sources = transformer_sources(weights) | adapter_sources(
        weights.of(weights.adapters_on or "high_noise"), config["num_layers"]
    )
    shapes = {key: source.shape for key, source in sources.items()}
    resampler = read_shapes(weights.resampler) if weights.resampler else None

    def all_fit(room: Room) -> bool:
        return all(
            fits(
                predict(
                    shapes, task.layout, dtype=dtype, sharded=sharded, size=task.size,
                    heads=config["num_attention_heads"], resampler=resampler, vae_bytes=VAE_BYTES,
                    tiled_decode=tiled_decode, tf32_decode=tf32_decode, keep_projections=room.keep_projections,
                    first_frame=parts.takes_image, experts=experts, resident=1 if room.one_expert else experts,
                ),
                device_bytes,
            )
            for task in set(tasks) or {LARGEST}
        )  # fmt: skip

    rooms = [] if one_expert and experts > 1 else [Room(True), Room(False)]
    if experts > 1:
        rooms += [Room(True, one_expert=True), Room(False, one_expert=True)]
    *better, least = rooms
    return next((room for room in better if all_fit(room)), least)
