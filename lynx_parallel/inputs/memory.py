"""Predicts the memory of a rank from shapes alone. Imports neither torch nor Ray.

Weights and static keys and values are exact. Activations and decoding are derived from the code and hold to within a
few per cent of what is traced, and of the peaks measured on one H200. Communication buffers and ``ALLOWANCE_BYTES`` are
estimates: no GPU has confirmed them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import NamedTuple

from lynx_parallel.inputs.decode_memory import VideoSize, decode_bytes, encode_bytes
from lynx_parallel.inputs.layout import Layout
from lynx_parallel.inputs.projections import is_projection

Shapes = Mapping[str, tuple[int, ...]]

DTYPE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
KEPT_FP32 = frozenset({"rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"})
"""Modules that diffusers keeps in fp32 (``WanTransformer3DModel._keep_in_fp32_modules``)."""
TEXT_TOKENS, IMAGE_TOKENS, ID_TOKENS, REF_TOKENS = 512, 257, 16, 256
CONDITIONING_ENTRIES = 8
"""Sets of static keys and values that a pipeline keeps from shot to shot, see ``ConditioningCache``."""
ALLOWANCE_BYTES = 1_500_000_000
"""Estimate: the CUDA context (0.5 GB), the face models (0.2 GB), the workspaces of cuBLAS and cuDNN, the rounding of
the allocator, and small tensors (latents, the scheduler's state)."""
VAE_BYTES = 507_570_124
"""Size of Wan2.1's VAE in fp32."""
GROUP_BYTES = 300_000_000
"""Estimate: NCCL's buffers for one process group."""
TEXT_ACTIVATION_BYTES = 300_000_000
"""Estimate: the text encoder's activations for one prompt of 512 tokens."""


class Task(NamedTuple):
    """A video's size and the layout in which it is rendered."""

    size: VideoSize
    layout: Layout


@dataclass(frozen=True)
class Prediction:
    """Bytes on the fullest rank of a gang, by phase.

    The reference pass and the encoding of the face crop take less than denoising (0.13 and 0.25 GB at 14B beside the
    weights), so they are no phase of their own.

    Attributes:
        transformer: the base's parameters that live here.
        adapters: Lynx's ID and reference projections that live here.
        resampler, vae: whole on every rank.
        gathered: with sharding, the weights that are whole while a block runs.
        static_kv: keys and values of text, ID and reference for this rank's branches.
        kept_kv: the most keys and values that ``LynxPipeline`` keeps from earlier shots.
        activations: peak of a forward.
        communication: NCCL's buffers, estimated.
        decode: peak of decoding, see ``decode_bytes``.
        text_encoder: weights of the text encoder, which are freed before the transformer is loaded.
        first_frame: peak of encoding the first frame, on rank 0, for a base that begins with one.
    """

    transformer: int
    adapters: int
    resampler: int
    vae: int
    gathered: int
    static_kv: int
    kept_kv: int
    activations: int
    communication: int
    decode: int
    text_encoder: int
    first_frame: int = 0

    @property
    def weights(self) -> int:
        return self.transformer + self.adapters + self.resampler + self.vae

    @property
    def phases(self) -> dict[str, int]:
        """Bytes by phase, without ``ALLOWANCE_BYTES``."""
        stays = self.weights + self.static_kv + self.kept_kv + self.communication
        return {
            "encode text": self.text_encoder + TEXT_ACTIVATION_BYTES if self.text_encoder else 0,
            "encode first frame": stays + self.first_frame if self.first_frame else 0,
            "denoise": stays + self.gathered + self.activations,
            "decode": stays + self.decode,
        }

    @property
    def total(self) -> int:
        """Bytes of the largest phase, plus ``ALLOWANCE_BYTES``."""
        return max(self.phases.values()) + ALLOWANCE_BYTES


def predict(
    shapes: Shapes,
    layout: Layout,
    *,
    dtype: str,
    sharded: bool,
    keep_projections: bool = True,
    size: VideoSize,
    heads: int,
    branches: Sequence[str] = ("c", "i", "u"),
    resampler: Shapes | None = None,
    vae_bytes: int = 0,
    text_encoder_bytes: int = 0,
    tiled_decode: bool = False,
    tf32_decode: bool = False,
    first_frame: bool = False,
    experts: int = 1,
    resident: int = 1,
    kept_fp32: Collection[str] = KEPT_FP32,
) -> Prediction:
    """Returns what the fullest rank of a gang needs to render one shot.

    Args:
        shapes: of the transformer with its adapters, by state-dict key of ``LynxTransformer``.
        dtype: float32, bfloat16 or float16, of all weights but those that stay in fp32.
        sharded: whether each rank of a ring × Ulysses group keeps 1/(ring · ulysses) of the transformer and adapters.
        keep_projections: whether the projections behind static keys and values stay; False as in ``load_transformer``.
        size: of the video.
        heads: attention heads of the model.
        branches: guidance branches with a weight: c, i, u.
        resampler: shapes of the resampler, or None.
        vae_bytes: of the VAE, which is fp32 and small (0.5 GB at 14B).
        text_encoder_bytes: of the text encoder.
        tiled_decode: decode by tiles, on rank 0.
        tf32_decode: decode with convolutions in TF32.
        first_frame: whether the base begins a video with a picture.
        experts: number of transformers of these shapes; their static keys and values are kept for each of them.
        resident: number of them that are on the device at the same time.
    """
    width, ranks = DTYPE_BYTES[dtype], layout.sequence if sharded else 1
    ffn_dim, dim = shapes["blocks.0.ffn.net.0.proj.weight"]
    held = {key: shape for key, shape in shapes.items() if keep_projections or not is_projection(key)}
    adapters = {key: shape for key, shape in held.items() if "_adapter." in key}
    base = {key: shape for key, shape in held.items() if key not in adapters}
    dealt = [branches[n :: layout.guidance] for n in range(layout.guidance)]
    static = max(static_kv_bytes(shapes, mine, width) for mine in dealt)
    entries = CONDITIONING_ENTRIES * experts
    # A rank with fewer branches keeps more from earlier shots.
    all_kv = max(static_kv_bytes(shapes, mine, width) + kept_kv_bytes(shapes, mine, width, entries) for mine in dealt)
    axes = (layout.size, layout.sequence, layout.ring, layout.ulysses, layout.guidance)
    return Prediction(
        transformer=resident * parameter_bytes(base, width, kept_fp32=kept_fp32, ranks=ranks),
        adapters=resident * parameter_bytes(adapters, width, kept_fp32=kept_fp32, ranks=ranks),
        resampler=parameter_bytes(resampler or {}, width, kept_fp32=()),
        vae=vae_bytes,
        gathered=_gathered_bytes(held, width, kept_fp32) if ranks > 1 else 0,
        static_kv=static,
        kept_kv=all_kv - static,
        activations=activation_bytes(
            size.tokens, layout, dim=dim, ffn_dim=ffn_dim, head_dim=dim // heads, dtype_bytes=width
        ),
        communication=GROUP_BYTES * sum(degree > 1 for degree in axes),
        decode=decode_bytes(size, ranks=layout.size, tiled=tiled_decode, tf32=tf32_decode),
        text_encoder=text_encoder_bytes,
        first_frame=encode_bytes(size) if first_frame else 0,
    )


def parameter_bytes(
    shapes: Shapes,
    dtype_bytes: int,
    *,
    kept_fp32: Collection[str] = KEPT_FP32,
    rank: int = 0,
    ranks: int = 1,
) -> int:
    """Returns the bytes of these parameters that live on one rank.

    Args:
        dtype_bytes: of one number of the model's type.
        kept_fp32: names of modules and parameters whose numbers take four bytes all the same.
        rank: among those that share one copy of the weights. Rank 0 is never emptier than another.
        ranks: that share one copy, as ``fully_shard`` cuts it: by ⌈rows / ranks⌉ rows of the first axis, so that the
            last ranks may get fewer rows, or none.
    """
    total = 0
    for key, (rows, *rest) in shapes.items():
        chunk = ceil(rows / ranks)
        mine = min((rank + 1) * chunk, rows) - min(rank * chunk, rows)
        in_fp32 = any(part in kept_fp32 for part in key.split("."))
        total += mine * prod(rest) * (4 if in_fp32 else dtype_bytes)
    return total


def static_kv_bytes(shapes: Shapes, branches: Iterable[str], dtype_bytes: int) -> int:
    """Returns the bytes of keys and values that these branches attend to beside the video; branches share them.

    All attend to the first frame, if the base sees one. c attends to the prompt, i and u to the negative prompt. c and
    i attend to the subject's identity and reference.
    """
    sets, (texts, people) = _static_sets(shapes, dtype_bytes), _sets_in_use(branches)
    return sets["image"] + texts * sets["text"] + people * (sets["identity"] + sets["reference"])


def kept_kv_bytes(
    shapes: Shapes, branches: Iterable[str], dtype_bytes: int, entries: int = CONDITIONING_ENTRIES
) -> int:
    """Returns the most bytes that ``LynxPipeline`` keeps from earlier shots: its free entries, filled by largest sets.

    Such a set is the text of an earlier prompt, or the reference pass's own prompt, "image of a face".
    """
    sets, (texts, people) = _static_sets(shapes, dtype_bytes), _sets_in_use(branches)
    used = (sets["image"] > 0) + texts + people * sum(sets[kind] > 0 for kind in ("identity", "reference"))
    return max(entries - used, 0) * max(sets.values())


def _sets_in_use(branches: Iterable[str]) -> tuple[int, int]:
    """Returns the numbers of different texts and people that these branches see."""
    branches = set(branches)
    return len({name == "c" for name in branches}), len({name == "u" for name in branches})


def _static_sets(shapes: Shapes, dtype_bytes: int) -> dict[str, int]:
    """Returns the bytes of one set of static keys and values of each kind."""
    numbers = {"text": 0, "image": 0, "identity": 0, "reference": 0}
    for key, shape in shapes.items():
        if key.endswith("attn2.to_k.weight"):
            numbers["text"] += TEXT_TOKENS * shape[0]
        elif key.endswith("attn2.add_k_proj.weight"):
            numbers["image"] += IMAGE_TOKENS * shape[0]
        elif key.endswith("id_adapter.to_k_ip.weight"):
            registers = shapes.get(key.replace("to_k_ip.weight", "registers"), (1, 0))[1]
            numbers["identity"] += (ID_TOKENS + registers) * shape[0]
        elif key.endswith("ref_adapter.to_k_ref.weight"):
            numbers["reference"] += REF_TOKENS * shape[0]
    return {kind: 2 * count * dtype_bytes for kind, count in numbers.items()}


def activation_bytes(tokens: int, layout: Layout, *, dim: int, ffn_dim: int, head_dim: int, dtype_bytes: int) -> int:
    """Returns the peak of one forward, one branch at a time; traced to within a few per cent.

    With N tokens, P = ring · ulysses, L = ⌈N / P⌉ of them here, C channels, D of a head, F of the feed-forward, b bytes
    a number, and e = 4 where the model is not fp32 itself (its residuals are then cast to fp32), else 0, the largest of

    - embedding, before tokens are split: the rotary tables, the patches and their transposed copy: 8·N·D + 2b·N·C

    and, beside the rotary tables of this rank's tokens, 8·L·D, the largest of

    - norm of the keys: x, h, q, k before and after; k in fp32, normalised, and scaled: L·C·(4b + 8 + e). CUDA's fused
      norm takes less.
    - feed-forward: the caller's x, x, h, the hidden layer before and after its activation: L·(3b·C + 2b·F)
    - Ulysses: x, q, k, v, rotated q, exchanged q, k, v in one buffer before and after, the output: L·C·11b
    - ring: it gathers the keys and values of all its ranks at once, beside merging in fp32:
      L·C·(8b + 8 + e + 2b·ring), and 2b more with Ulysses
    """
    b, shard = dtype_bytes, layout.shard(tokens)
    cast = 4 if b < 4 else 0
    stages = [dim * (4 * b + 8 + cast), 3 * b * dim + 2 * b * ffn_dim]
    if layout.ulysses > 1:
        stages.append(dim * 11 * b)
    if layout.ring > 1:
        stages.append(dim * (8 * b + 8 + cast + 2 * b * layout.ring + (2 * b if layout.ulysses > 1 else 0)))
    return max(8 * tokens * head_dim + 2 * b * tokens * dim, shard * (8 * head_dim + max(stages)))


def _gathered_bytes(shapes: Shapes, dtype_bytes: int, kept_fp32: Collection[str]) -> int:
    """Returns the most bytes that sharding gathers at once: weights outside the blocks, and twice the largest block.

    A forward gathers no projections. They are gathered one kind at a time, before activations take memory.
    """
    groups: dict[str, dict[str, tuple[int, ...]]] = {"": {}}
    for key, shape in shapes.items():
        group = key.split(".")[1] if key.startswith("blocks.") else ""
        if not is_projection(key):
            groups.setdefault(group, {})[key] = shape
    outside, *blocks = (parameter_bytes(group, dtype_bytes, kept_fp32=kept_fp32) for group in groups.values())
    return outside + 2 * max(blocks)
