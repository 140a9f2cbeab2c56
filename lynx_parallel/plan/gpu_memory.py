"""Predicts the memory that the shots of a plan take on a GPU, from headers of weights files.

Imports neither torch nor Ray.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.base_parts import base_parts
from lynx_parallel.inputs.memory import VAE_BYTES, Prediction, Shapes, Task, predict
from lynx_parallel.inputs.model_config import transformer_config
from lynx_parallel.inputs.tensor_headers import read_header
from lynx_parallel.inputs.weight_files import WeightFiles
from lynx_parallel.plan.loras import transformer_shapes

_ADAPTER = re.compile(r"(?:.*\.)?(?P<block>\d+)\.(?:.*\.)?(?P<name>(?:to_[kv]_(?:ip|ref)\.(?:weight|bias))|registers)")


def model_shapes(weights: WeightFiles) -> Shapes | None:
    """Returns the shapes of a transformer with its adapters, by state-dict key; None if a key is unknown.

    Raises:
        CheckpointError: a file cannot be read.
    """
    shapes = dict(transformer_shapes(weights))
    for module, path in (("id_adapter", weights.id), ("ref_adapter", weights.ref)):
        for key, tensor in ({} if path is None else read_header(path).tensors).items():
            found = _ADAPTER.fullmatch(key)
            if found is None:
                return None
            shapes[f"blocks.{found['block']}.{module}.{found['name']}"] = tensor.shape
    return shapes


def predictions(
    weights: WeightFiles,
    tasks: Collection[Task],
    *,
    dtype: str,
    sharded: bool,
    tiled_decode: bool,
    tf32_decode: bool,
    one_expert: bool = False,
) -> tuple[Prediction, Prediction] | None:
    """Returns what the largest of the tasks takes at least, and with all projections kept; None if it is not known.

    At least means that projections are read again for each new prompt, and that one of two experts is held.
    Arguments as in ``predict``.
    """
    try:
        shapes = model_shapes(weights)
        if shapes is None or not tasks:
            return None
        config, parts = transformer_config(weights), base_parts(weights.base)
        resampler = None
        if weights.resampler is not None:
            resampler = {key: tensor.shape for key, tensor in read_header(weights.resampler).tensors.items()}
    except (CheckpointError, OSError):
        return None

    def largest(keep: bool, resident: int) -> Prediction:
        made = (
            predict(
                shapes, task.layout, dtype=dtype, sharded=sharded, keep_projections=keep, size=task.size,
                heads=config["num_attention_heads"], resampler=resampler, vae_bytes=VAE_BYTES,
                tiled_decode=tiled_decode, tf32_decode=tf32_decode, first_frame=parts.takes_image,
                experts=parts.experts, resident=resident,
            )
            for task in tasks
        )  # fmt: skip
        return max(made, key=lambda one: one.total)

    return largest(False, 1), largest(True, 1 if one_expert else parts.experts)
