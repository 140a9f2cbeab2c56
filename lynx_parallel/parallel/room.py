"""Decides whether a device has room, by the prediction of ``inputs.memory``. Reads only headers of weights files."""

from __future__ import annotations

from collections.abc import Collection

from lynx_parallel.inputs.decode_memory import VideoSize
from lynx_parallel.inputs.layout import Layout
from lynx_parallel.inputs.memory import Prediction, Task, predict
from lynx_parallel.inputs.model_config import transformer_config
from lynx_parallel.inputs.weight_files import WeightFiles
from lynx_parallel.model.adapter_files import adapter_sources
from lynx_parallel.model.tensor_files import base_sources, read_shapes, single_file_sources

MARGIN = 0.05
"""Share of a device's memory that the prediction must leave free: some of its parts are estimates."""
VAE_BYTES = 507_570_124
"""Size of Wan2.1's VAE in fp32."""
LARGEST = Task(VideoSize(1280, 720, 81), Layout())
"""The largest video that Wan2.1 was trained for, on one rank."""


def fits(made: Prediction, device_bytes: int) -> bool:
    """Returns whether a prediction leaves ``MARGIN`` of the device free."""
    return made.total <= (1 - MARGIN) * device_bytes


def keeps_projections(
    weights: WeightFiles,
    device_bytes: int,
    *,
    dtype: str,
    sharded: bool,
    tiled_decode: bool = False,
    tf32_decode: bool = False,
    tasks: Collection[Task] = (),
) -> bool:
    """Returns whether idle projections may stay on a device, that is, whether every task fits beside them.

    Counts elements in the dtype in which they are loaded. The files' size is no measure: they may be fp32.

    Args:
        device_bytes: memory of the device.
        dtype, sharded, tiled_decode, tf32_decode: as in ``predict``.
        tasks: sizes and layouts that may have to be rendered; ``LARGEST`` if empty.

    Raises:
        CheckpointError: a file or key does not fit; names it.
    """
    config = transformer_config(weights)
    base = (
        single_file_sources(weights.transformer) if weights.transformer else base_sources(weights.base / "transformer")
    )
    sources = base | adapter_sources(weights, config["num_layers"])
    shapes, resampler = {key: source.shape for key, source in sources.items()}, read_shapes(weights.resampler)
    predictions = (
        predict(
            shapes, task.layout, dtype=dtype, sharded=sharded, size=task.size, heads=config["num_attention_heads"],
            resampler=resampler, vae_bytes=VAE_BYTES, tiled_decode=tiled_decode, tf32_decode=tf32_decode,
        )
        for task in set(tasks) or {LARGEST}
    )  # fmt: skip
    return all(fits(made, device_bytes) for made in predictions)
